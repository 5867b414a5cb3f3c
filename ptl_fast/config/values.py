"""Whether a value is of its setting's type, and what type that is in words."""

import numbers
import os
import types
import typing
from typing import Any

from ptl_fast.config.config import HINTS

PATHS = ("model", "data", "protect", "teacher", "output", "deepspeed")
"""Settings that may be path objects; their groups make text of them."""


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with NumPy's numbers as Python's.

    Raises:
        ValueError: there is no such setting, or a value is of another type.
    """
    values = {}
    for name, value in settings.items():
        if name not in HINTS:
            raise ValueError(
                f"there is no setting {name}; python -m ptl_fast.compress --help lists them"
            )
        if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        if not any(_fits(name, value, kind) for kind in _kinds(HINTS[name])):
            raise ValueError(f"{name}={value!r}: {wanted(HINTS[name])} is needed")
        values[name] = value
    return values


def wanted(hint: Any) -> str:
    """The types that a setting may have, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    told = []
    for kind in _kinds(hint):
        if typing.get_origin(kind) is typing.Literal:
            told += list(typing.get_args(kind))
        elif kind is not types.NoneType:
            told.append(words.get(kind, "a list of texts"))
    return " or ".join(told)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(name: str, value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        # where a setting is nothing but choices, Config.check names them
        return isinstance(value, str) and (kind is HINTS[name] or value in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    if kind in (int, float):  # a bool is an int in Python, and true is no number here
        accepted = int if kind is int else int | float
        return isinstance(value, accepted) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str | os.PathLike if name in PATHS else str)
    return isinstance(value, kind)

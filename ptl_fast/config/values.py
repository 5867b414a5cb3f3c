"""Check the types of settings' values, and put types into words for error messages."""

import numbers
import os
import types
import typing
from typing import Any

from ptl_fast.config.checking import nearest
from ptl_fast.config.config import HINTS
from ptl_fast.config.numbers import as_count, as_share

PATHS = ("model", "data", "protect", "teacher", "output", "deepspeed")
"""Settings that may be path objects; their groups turn them into str."""


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, with NumPy numbers converted to Python's.

    Raises:
        ValueError: there is no such setting, or a value has the wrong type.
    """
    values = {}
    for name, value in settings.items():
        if name not in HINTS:
            raise ValueError(
                f"there is no setting {name}{nearest(name, HINTS)}; python -m ptl_fast.compress"
                " --help lists them"
            )
        value = plain_number(name, value)
        # NumPy numbers, and others that register as real, could not be written to state.json
        if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        if not any(_fits(name, value, kind) for kind in _kinds(HINTS[name])):
            raise ValueError(f"{name}={value!r}: {needed(name, value)}")
        values[name] = value
    return values


def plain_number(name: str, value: Any) -> Any:
    """The number that a text with a unit stands for, where a setting is a number: 3M, 1.5B, 65%.

    Any other value is returned as it is.
    """
    kinds = _kinds(HINTS[name]) if name in HINTS else ()
    # a plain number as text is an error from Python, and a number to the parser
    if not isinstance(value, str) or value.strip().isdigit():
        return value
    if int in kinds and (count := as_count(value)) is not None:
        return count
    if float in kinds and (share := as_share(value)) is not None:
        return share
    return value


def needed(name: str, value: Any) -> str:
    """What a setting needs instead of this value, with the choice that is most like it."""
    return f"{wanted(HINTS[name])} is needed{nearest(str(value), choices(name))}"


def choices(name: str) -> list[str]:
    """The words that a setting may be, where there are some."""
    return [
        choice
        for kind in _kinds(HINTS[name])
        if typing.get_origin(kind) is typing.Literal
        for choice in typing.get_args(kind)
    ]


def wanted(hint: Any) -> str:
    """Return the values that a type annotation allows, in words, such as "a number or auto"."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    told = []
    for kind in _kinds(hint):
        if typing.get_origin(kind) is typing.Literal:
            # choices are named one by one, None is not: it means that the setting is left out
            told += list(typing.get_args(kind))
        elif kind is not types.NoneType:
            told.append(words.get(kind, "a list of texts"))
    return " or ".join(told)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union type, or the type itself."""
    # int | None and Optional[int] have different origins in Python before 3.14
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(name: str, value: Any, kind: Any) -> bool:
    """Whether a setting's value is of this type, one member of the setting's annotation."""
    if typing.get_origin(kind) is typing.Literal:
        # a setting with choices alone takes any text here: Config.check's error lists the choices
        return isinstance(value, str) and (kind is HINTS[name] or value in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    # bool is a subclass of int, but keep=True is an error
    if kind in (int, float):
        accepted = int if kind is int else int | float
        return isinstance(value, accepted) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str | os.PathLike if name in PATHS else str)
    return isinstance(value, kind)

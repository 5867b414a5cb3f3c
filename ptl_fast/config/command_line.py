"""Where settings come from: flags, a --config file, presets -> Config. Imports nothing heavy, so
that --help answers at once.
"""

import argparse
import dataclasses
import json
import numbers
import os
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from ptl_fast.config.config import NOT_ON_TEXT, PATHS, Config

PRESETS = Path(__file__).parent / "presets"
HINTS = typing.get_type_hints(Config)


def parse(arguments: list[str] | None = None) -> Config:
    """Settings from flags, a --config file and a preset: the later flag or file counts, and a
    preset where neither says anything.

    Raises:
        ValueError: a value is of another type, or there is no such preset.
        argparse.ArgumentError: there is no such flag.
    """
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    # the deepspeed launcher adds this flag; LOCAL_RANK in the environment says the same
    arguments = [argument for argument in arguments if not argument.startswith("--local_rank=")]
    try:
        chosen = parser.parse_args(arguments)
        parser.set_defaults(
            _defaults(chosen.preset, chosen.model, chosen.slice_hidden, chosen.recovery)
        )
        settings = parser.parse_args(arguments).as_dict()
    except argparse.ArgumentError as error:  # of types, the parser tells in its own words
        wrong = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
        if wrong is None or wrong[1] not in HINTS:
            raise
        raise ValueError(
            f"--{wrong[1].replace('_', '-')} {wrong[2]}: {_wanted(HINTS[wrong[1]])} is needed"
        ) from error
    settings.pop("config")
    return Config(**_checked(settings))  # the parser lets null pass


def make_config(settings: dict[str, Any]) -> Config:
    """Settings of ``ptl_fast.compress(...)``, with the defaults of their preset.

    Raises:
        ValueError: a name or a value's type is wrong.
    """
    settings = _checked(settings)
    chosen = (settings.get(name) for name in ("preset", "model", "slice_hidden", "recovery"))
    defaults = _defaults(*chosen)
    return Config(**{**defaults, **settings})


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a setting may have."""
    return (
        typing.get_args(hint)
        if typing.get_origin(hint) in (types.UnionType, typing.Union)
        else (hint,)
    )


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, numbers of NumPy as Python's; raises ValueError where a name or a type is
    wrong.
    """
    checked = {}
    for name, value in settings.items():
        if name not in HINTS:
            raise ValueError(
                f"there is no setting {name}; python -m ptl_fast.compress --help lists them"
            )
        if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        if not any(_fits(name, value, kind) for kind in _kinds(HINTS[name])):
            raise ValueError(f"{name}={value!r}: {_wanted(HINTS[name])} is needed")
        checked[name] = value
    return checked


def _fits(name: str, value: Any, kind: Any) -> bool:
    if (
        typing.get_origin(kind) is typing.Literal
    ):  # of a setting that is nothing else, Config.check names the choices
        return isinstance(value, str) and (kind is HINTS[name] or value in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(
            value, bool
        )
    return (
        isinstance(value, str | os.PathLike if name in PATHS else str)
        if kind is str
        else isinstance(value, kind)
    )


def _wanted(hint: Any) -> str:
    """The types that a setting may have, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    told = []
    for kind in _kinds(hint):
        if typing.get_origin(kind) is typing.Literal:
            told += list(typing.get_args(kind))
        elif kind is not types.NoneType:
            told.append(words.get(kind, "a list of texts"))
    return " or ".join(told)


def preset_settings(name: str | None, model: str | None) -> dict[str, Any]:
    """Settings of a preset; without a preset and a model, of the demo.

    Raises:
        ValueError: no such preset.
    """
    if name is None:
        if model is not None:
            return {}
        name = "demo"
    import yaml

    file = PRESETS / f"{name}.yaml"
    if not file.is_file():
        choices = sorted(path.stem for path in PRESETS.glob("*.yaml"))
        raise ValueError(f"unknown --preset {name}; choose {', '.join(choices)}")
    return {"preset": name, **yaml.safe_load(file.read_text())}


def shipped_config(name: str) -> types.SimpleNamespace | None:
    """The architecture's numbers of a model that a preset names: enough for a dry run, not for
    loading weights.
    """
    file = PRESETS / "configs" / f"{name.replace('/', '--')}.json"
    if name == "ptl-demo":
        file = Path(__file__).parents[1] / "demo" / "model" / "config.json"
    if Path(name).exists() or not file.is_file():
        return None
    return types.SimpleNamespace(**json.loads(file.read_text()))


def _parser() -> Any:
    import docstring_parser
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="python -m ptl_fast.compress",
        description="Make a language model smaller by pruning a little, recovering by training,"
        " and repeating. Without --model, the"
        " bundled demo runs. The same command continues an interrupted run.",
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with settings; flags after it override it"
    )
    help_of = {
        item.args[1]: item.description for item in docstring_parser.parse_from_object(Config).params
    }
    for field in dataclasses.fields(Config):
        default = field.default_factory() if callable(field.default_factory) else field.default
        kind: dict[str, Any] = {"type": HINTS[field.name], "default": default}
        if HINTS[field.name] is bool:  # --flag, --flag true and --flag false
            kind.update(nargs="?", const=True)
        text = (help_of.get(field.name) or "").replace("\n", " ").replace("%", "%%")
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=text, **kind)
    return parser


def _defaults(
    preset: str | None, model: str | None, slice_hidden: float | None, recovery: str | None
) -> dict[str, Any]:
    """Settings that hold where the user gives none: a preset's, as far as they go with what the
    user chose.

    With --slice-hidden one round removes no neurons. A preset's way of sharing text is for
    recoveries that train on it."""
    settings = preset_settings(preset, model)
    if recovery is not None and NOT_ON_TEXT.issuperset(recovery.split(",")):
        settings.pop("recovery_split", None)
    slicing = {} if slice_hidden is None else {"keep": 1.0, "rounds": None}
    return {**settings, **slicing}

"""Where settings come from: flags, a --config file, presets -> Config.

Imports nothing heavy, so that --help answers at once.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable
from typing import Any

from ptl_fast.config.checking import flag
from ptl_fast.config.config import GROUPS, HINTS, Config
from ptl_fast.config.presets import preset_settings
from ptl_fast.config.values import checked, wanted

OnText = Callable[[str], bool]
"""Whether a value of --recovery trains on the data's text: ptl_fast.recovery knows."""


def parse(arguments: list[str], on_text: OnText) -> Config:
    """Settings from flags, a --config file and a preset: the later flag or file counts, and a
    preset where neither says anything.

    Raises:
        ValueError: a value is of another type, or there is no such preset.
        argparse.ArgumentError: there is no such flag.
    """
    parser = _parser()
    # the deepspeed launcher adds this flag; LOCAL_RANK in the environment says the same
    arguments = [argument for argument in arguments if not argument.startswith("--local_rank=")]
    try:
        parser.set_defaults(_defaults(vars(parser.parse_args(arguments)), on_text))
        settings = parser.parse_args(arguments).as_dict()
    except argparse.ArgumentError as error:  # of types, the parser tells in its own words
        wrong = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
        if wrong is None or wrong[1] not in HINTS:
            raise
        needed = wanted(HINTS[wrong[1]])
        raise ValueError(f"{flag(wrong[1])} {wrong[2]}: {needed} is needed") from error
    settings.pop("config")
    return Config.from_flat(**checked(settings))  # the parser lets null pass


def make_config(settings: dict[str, Any], on_text: OnText) -> Config:
    """Settings of ``ptl_fast.compress(...)``, with the defaults of their preset.

    Raises:
        ValueError: a name or a value's type is wrong.
    """
    settings = checked(settings)
    return Config.from_flat(**{**_defaults(settings, on_text), **settings})


def _parser() -> Any:
    """The parser: a flag a setting, a group of flags a group of settings."""
    import docstring_parser
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="python -m ptl_fast.compress",
        description="Make a language model smaller by pruning a little, recovering by training,"
        " and repeating. Without --model, the bundled demo runs. The same command continues an"
        " interrupted run.",
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with settings; flags after it override it"
    )
    for name, group in GROUPS.items():
        described = docstring_parser.parse_from_object(group)
        help_of = {item.args[1]: item.description for item in described.params}
        section = parser.add_argument_group(name, description=described.short_description)
        for field in dataclasses.fields(group):
            default = field.default_factory() if callable(field.default_factory) else field.default
            kind: dict[str, Any] = {"type": HINTS[field.name], "default": default}
            if HINTS[field.name] is bool:  # --flag, --flag true and --flag false
                kind.update(nargs="?", const=True)
            text = (help_of.get(field.name) or "").replace("\n", " ").replace("%", "%%")
            section.add_argument(flag(field.name), help=text, **kind)
    return parser


def _defaults(chosen: dict[str, Any], on_text: OnText) -> dict[str, Any]:
    """Settings that hold where the user gives none: a preset's, as far as they go with what the
    user chose.

    With --slice-hidden one round removes no neurons. A preset's way of sharing text is for
    recoveries that train on it.
    """
    settings = preset_settings(chosen.get("preset"), chosen.get("model"))
    recovery = chosen.get("recovery")
    if recovery is not None and not on_text(recovery):
        settings.pop("recovery_split", None)
    slicing = {} if chosen.get("slice_hidden") is None else {"keep": 1.0, "rounds": None}
    return {**settings, **slicing}

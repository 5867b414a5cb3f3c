"""Make a Config from command-line flags, a --config file (YAML) and presets.

Imports neither torch nor transformers, so that --help answers at once.
"""

import argparse
import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptl_fast.config.checking import flag
from ptl_fast.config.config import GROUPS, HINTS, Config
from ptl_fast.config.presets import preset_settings
from ptl_fast.config.values import checked, wanted

MOST_BYTES, MOST_NESTED = 2**20, 10  # of a file of settings
OnText = Callable[[str], bool]
"""Whether a value of --recovery trains on the data's text; ptl_fast.recovery has the function."""


def parse(arguments: list[str], on_text: OnText) -> Config:
    """Parse flags, a --config file and a preset into settings.

    Flags and files override what comes before them on the command line, and both override the
    preset.

    Raises:
        ValueError: a value has the wrong type, or there is no such preset.
        argparse.ArgumentError: there is no such flag.
    """
    parser = _parser()
    # the deepspeed launcher adds this flag; LOCAL_RANK in the environment says the same
    arguments = [argument for argument in arguments if not argument.startswith("--local_rank=")]
    _check_files(arguments)
    try:
        # parsed twice: the first time to find the preset, whose values become the defaults
        parser.set_defaults(_defaults(vars(parser.parse_args(arguments)), on_text))
        settings = parser.parse_args(arguments).as_dict()
    except argparse.ArgumentError as error:
        # jsonargparse describes type errors over several lines: say it in one, as make_config does
        wrong = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
        if wrong is None or wrong[1] not in HINTS:
            raise
        needed = wanted(HINTS[wrong[1]])
        raise ValueError(f"{flag(wrong[1])} {wrong[2]}: {needed} is needed") from error
    settings.pop("config")
    # checked once more, as the parser accepts null for every type
    return Config.from_flat(**checked(settings))


def make_config(settings: dict[str, Any], on_text: OnText) -> Config:
    """Make settings from the keyword arguments of ``ptl_fast.compress(...)``.

    Those not given have their preset's values, or the defaults.

    Raises:
        ValueError: there is no such setting or preset, or a value has the wrong type.
    """
    settings = checked(settings)
    return Config.from_flat(**{**_defaults(settings, on_text), **settings})


def _check_files(arguments: list[str]) -> None:
    """Raise ValueError, with its name, for a --config file that is not a mapping in YAML."""
    for flagged, value in itertools.pairwise([*arguments, ""]):
        name = value if flagged == "--config" else flagged.partition("--config=")[2]
        if not name:
            continue
        import yaml

        path = Path(name).expanduser()
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"--config {name} is no file of settings: it is too large")
            text = path.read_text()
            _check_yaml(text, name)
            content = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or error
            raise ValueError(f"--config {name} cannot be read as YAML: {reason}") from error
        if not isinstance(content, dict):
            raise ValueError(f"--config {name} holds no settings; write lines such as keep: 0.65")


def _check_yaml(text: str, name: str) -> None:
    """Raise ValueError for YAML that would take long to read, or sets a setting twice."""
    import yaml

    depth = 0
    # parsing yields events one by one; only building values from them can explode
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"--config {name} has an alias (*{event.anchor}); write values out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTED:
            raise ValueError(
                f"--config {name} is nested too deep; settings are lines such as keep: 0.65"
            )
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"--config {name} sets {key} more than once; leave one of them")


def _parser() -> Any:
    """Make the parser: one flag per setting, one section of the help per group.

    A setting's help text is the docstring of its dataclass field.
    """
    # imported here, as Python users of ptl_fast.compress never need a parser
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
    """The defaults: the preset's settings, as far as they are compatible with what the user chose.

    Args:
        chosen: the settings that the user gives.
    """
    settings = preset_settings(chosen.get("preset"), chosen.get("model"))
    recovery = chosen.get("recovery")
    # a preset's --recovery-split is only for recoveries that train on text
    if recovery is not None and not on_text(recovery):
        settings.pop("recovery_split", None)
    # SliceGPT is one round that removes no neurons, whatever the preset says
    slicing = {} if chosen.get("slice_hidden") is None else {"keep": 1.0, "rounds": None}
    return {**settings, **slicing}

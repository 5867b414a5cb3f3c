"""Make a Config from command-line flags, a --config file (YAML) and presets.

Imports neither torch nor transformers, so that --help answers at once.
"""

import argparse
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptl_fast.config.checking import flag, nearest, nearest_file
from ptl_fast.config.config import GROUPS, HINTS, RESUME_FREE, Config
from ptl_fast.config.goal import TARGETS, GoalSettings
from ptl_fast.config.presets import preset_settings
from ptl_fast.config.values import checked, needed, plain_number

DESCRIPTION = """\
Make a language model smaller by pruning a little, recovering by training, and repeating.
The same command continues an interrupted run. Without settings, the bundled demo runs.

examples:
  ptl-fast compress --model Qwen/Qwen2.5-0.5B --data train.jsonl --target-params 65% --output out/
  ptl-fast compress --model ./mine --data OWNER/NAME --keep 0.5 --recovery-tokens 50M \\
      --eval-tasks ptl_gsm8k=test.jsonl
  ptl-fast estimate --preset llama3-8b --dry-run-gpus 8xH100-80GB

python -m ptl_fast.compress is the same command. Settings, by group:"""
SIZES = ("keep", "drop_layers", "layers")
"""What goals are solved into."""
GROUP_OF_GOALS = tuple(each.name for each in dataclasses.fields(GoalSettings))
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
DECIMAL = re.compile(r"[-+]?(0|[1-9][\d_]*)?(\.\d*)?(e[-+]?\d+)?|[-+]?\.(inf|nan)", re.IGNORECASE)
MOST_BYTES, MOST_NESTED = 2**20, 10  # of a file of settings
OnText = Callable[[str], bool]
"""Whether a value of --recovery trains on the data's text; ptl_fast.recovery has the function."""


def parse(arguments: list[str], on_text: OnText) -> Config:
    """Parse flags, --config files and a preset into settings.

    Flags override --config files, wherever these stand on the command line, and files the preset.
    Of two files, or the same flag twice, the later one counts.

    Raises:
        ValueError: a value has the wrong type, or there is no such preset or setting.
        argparse.ArgumentError: there is no such flag.
    """
    parser = _parser()
    # the deepspeed launcher adds this flag; LOCAL_RANK in the environment says the same
    arguments = [argument for argument in arguments if not argument.startswith("--local_rank=")]
    flags = _typed(lambda: parser.parse_args(with_plain_numbers(arguments), defaults=False))
    files = flags.pop("config", None) or []
    return _joined([*(_file_settings(parser, name) for name in files), flags], on_text)


def make_config(settings: dict[str, Any], on_text: OnText) -> Config:
    """Make settings from the keyword arguments of ``ptl_fast.compress(...)``.

    Those not given have their preset's values, or the defaults.

    Raises:
        ValueError: there is no such setting or preset, or a value has the wrong type.
    """
    return _joined([settings], on_text)


def _joined(layers: list[dict[str, Any]], on_text: OnText) -> Config:
    """The settings that the layers give together, later ones first, over those of the preset."""
    chosen: dict[str, Any] = {}
    for layer in layers:
        chosen = _over(chosen, checked(layer))
    return Config.from_flat(**_over(_defaults(chosen, on_text), chosen))


def _over(below: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings over those of a layer below: a goal is another way to say the size, so that of two
    layers the upper one's size counts, said either way.

    Raises:
        ValueError: one layer says the size both ways.
    """
    goals = [name for name in TARGETS if own.get(name) is not None]
    if goals and own.get("keep", 1) != 1:
        raise ValueError(
            f"{flag(goals[0])} and --keep {own['keep']} both decide how many neurons stay; leave"
            " one of them out (--keep 1 leaves all, and layers go)"
        )
    replaced = SIZES if goals else TARGETS if "keep" in own else ()
    return {**{name: value for name, value in below.items() if name not in replaced}, **own}


def _typed(parse: Callable[[], Any]) -> dict[str, Any]:
    """Run jsonargparse; its errors about types, which take several lines, become one line."""
    try:
        return parse().as_dict()
    except argparse.ArgumentError as error:
        message = str(error)
        wrong = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
        if wrong is not None and wrong[1] in HINTS:
            raise ValueError(
                f"{flag(wrong[1])} {wrong[2]}: {needed(wrong[1], wrong[2])}"
            ) from error
        missing = re.search(r"unrecognized arguments: (--[\w-]+)|Option '([\w-]+)'", message)
        if missing is not None:
            name = (missing[1] or missing[2]).removeprefix("--").replace("-", "_")
            hint = nearest(name, HINTS, flag)
            told = f"there is no setting {missing[1] or missing[2]}{hint}"
            raise ValueError(f"{told}; ptl-fast compress --help lists them") from error
        raise


def _file_settings(parser: Any, name: str) -> dict[str, Any]:
    """The settings of a --config file.

    Raises:
        ValueError: it is no mapping in YAML, or holds what is no setting; names the file.
    """
    content = _read_file(name)
    try:
        return _typed(lambda: parser.parse_object(_plain_values(content), defaults=False))
    # argparse's: a group of settings, a name that is a number
    except (ValueError, argparse.ArgumentError) as error:
        raise ValueError(f"--config {name}: {error}") from error


def _plain_values(content: dict[str, Any]) -> dict[str, Any]:
    """A file's settings with numbers for such words as 3M and 65%."""
    return {
        name: plain_number(str(name).replace("-", "_"), value) for name, value in content.items()
    }


def with_plain_numbers(arguments: list[str]) -> list[str]:
    """The arguments with numbers for such words as 3M and 65%."""
    changed, before = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--"):  # the value of the flag before it
            value = argument
            changed.append(str(plain_number(_setting(before), value)))
        elif equals:
            changed.append(f"{name}={plain_number(_setting(name), value)}")
        else:
            changed.append(argument)
        before = argument
    return changed


def _setting(flagged: str) -> str:
    """The setting that a flag names."""
    return flagged.removeprefix("--").replace("-", "_")


def _read_file(name: str) -> dict[str, Any]:
    """The content of a --config file; ValueError, with its name, if it is no mapping in YAML."""
    import yaml

    path = Path(name).expanduser()
    # a shell's own pipe, <(...), has somebody who writes to it
    if path.is_fifo() and path.absolute().parts[1] not in ("dev", "proc"):
        raise ValueError(f"--config {name} is a pipe; give a file")
    try:
        with path.open(encoding="utf-8") as stream:
            # no size is asked for: of a device it is 0
            text = stream.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"--config {name} is no file of settings: it is too large")
        _check_yaml(text, name)
        content = yaml.safe_load(text)
    except FileNotFoundError as error:
        hint = nearest_file(path)
        raise ValueError(
            f"--config {name} cannot be read as YAML: No such file or directory{hint}"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or error
        raise ValueError(f"--config {name} cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {name} holds no settings; write lines such as keep: 0.65")
    return content


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
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for key, value in pairs:
        # YAML's 010 is 8, and its 1:30 is 90
        if value.tag in NUMBER_TAGS and not DECIMAL.fullmatch(value.value):
            raise ValueError(
                f"--config {name}: {key.value}: {value.value} is no decimal number; write it as"
                " people do"
            )
    # width-multiple and width_multiple are one setting
    keys = [str(key.value).replace("-", "_") for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"--config {name} sets {key} more than once; leave one of them")


def _parser() -> Any:
    """Make the parser: one flag per setting, one section of the help per group.

    A setting's help text is the docstring of its dataclass field.
    """
    # imported here, as Python users of ptl_fast.compress never need a parser
    import jsonargparse

    class Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
        """Keeps the examples' lines."""

    parser = jsonargparse.ArgumentParser(
        prog="ptl-fast compress",
        usage="ptl-fast compress --model NAME --data FILE [--keep SHARE | --target-... GOAL]"
        " [--output RUN] [SETTING ...]",
        description=DESCRIPTION,
        formatter_class=Formatter,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="YAML file with settings; flags override it, and later files earlier ones",
    )
    for name, group in GROUPS.items():
        description, help_of = _documented(group)
        section = parser.add_argument_group(name, description=description)
        for field in dataclasses.fields(group):
            default = field.default_factory() if callable(field.default_factory) else field.default
            kind: dict[str, Any] = {"type": HINTS[field.name], "default": default}
            if HINTS[field.name] is bool:  # --flag, --flag true and --flag false
                kind.update(nargs="?", const=True)
            text = (help_of.get(field.name) or "").replace("\n", " ").replace("%", "%%")
            section.add_argument(flag(field.name), help=text, **kind)
    return parser


@functools.cache
def _documented(group: type) -> tuple[str | None, dict[str, str | None]]:
    """(what a group's docstring says first, {setting: its own docstring}), read from the source."""
    import docstring_parser

    described = docstring_parser.parse_from_object(group)
    fields = {item.args[1]: item.description for item in described.params}
    return described.short_description, fields


def _defaults(chosen: dict[str, Any], on_text: OnText) -> dict[str, Any]:
    """The defaults: the preset's settings, as far as they are compatible with what the user chose.

    Args:
        chosen: the settings that the user gives.
    """
    # the demo is what runs where nothing is asked for: whoever gives data means a model of theirs
    is_demo = chosen.keys() <= RESUME_FREE - set(GROUP_OF_GOALS)
    settings = preset_settings(chosen.get("preset") or ("demo" if is_demo else None))
    recovery = chosen.get("recovery")
    # a preset's --recovery-split is only for recoveries that train on text
    if recovery is not None and not on_text(recovery):
        settings.pop("recovery_split", None)
    # SliceGPT is one round that removes no neurons, whatever the preset says
    slicing = {} if chosen.get("slice_hidden") is None else {"keep": 1.0, "rounds": None}
    return {**settings, **slicing}

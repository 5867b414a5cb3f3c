"""Where a run begins, from the command line or from Python.

Imports nothing heavy, so that --help, a preset's dry run and wrong settings answer at once.
"""

import os
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import quiet_libraries
from ptl_fast.config import command_line
from ptl_fast.recovery.registry import trains_on_text
from ptl_fast.run import checks

if TYPE_CHECKING:
    from ptl_fast.config.config import Config


def parse(arguments: list[str]) -> "Config":
    """Settings from flags, a --config file and a preset.

    Raises:
        ValueError: a value is of another type, or there is no such preset.
        argparse.ArgumentError: there is no such flag.
    """
    return command_line.parse(arguments, trains_on_text)


def make_config(**settings: Any) -> "Config":
    """Settings by name, with the defaults of their preset.

    Raises:
        ValueError: a name or a value's type is wrong.
    """
    return command_line.make_config(settings, trains_on_text)


def compress(**settings: Any) -> dict[str, Any]:
    """Compress a model and return the content of report.json; see ptl_fast.compress."""
    return run(make_config(**settings))


def planned_sizes(**settings: Any) -> list[dict[str, int]]:
    """The sizes of the original and of what each round leaves; see ptl_fast.planned_sizes."""
    from ptl_fast.model import loading
    from ptl_fast.pruning import width_multiple
    from ptl_fast.run import rounds, sizes

    config = make_config(**settings)
    _check(config)
    assert config.model.model is not None
    original = loading.load_config(config.model.model)
    if config.prune.width_multiple == "auto":
        config = config.changed(width_multiple=width_multiple.TENSOR_CORE_MULTIPLE)
    checks.check_lengths(config, original)
    schedule = rounds.make_schedule(config, original)
    length = config.data.sequence_length
    return [sizes.predicted_size(original, size, length) for size in (None, *schedule)]


def run(config: "Config", quiet: bool = False) -> dict[str, Any]:
    """Check the settings; then run, or continue, a compression, or print its dry run.

    Args:
        quiet: leave only progress bars and our own messages on the screen.

    Raises:
        ValueError: a setting, the model or the data does not fit; the message names the fix.
    """
    _check(config)
    if config.run.dry_run:
        from ptl_fast.run.dry_run import dry_run

        if os.environ.get("RANK", "0") == "0":
            print(dry_run(config))
        return {}
    if quiet:  # imports transformers, which a dry run may not need
        quiet_libraries()
    from ptl_fast.run import loop

    return loop.run(config)


def _check(config: "Config") -> None:
    config.check()
    checks.check_methods(config)

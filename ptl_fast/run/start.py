"""Entry points of a run, for the command line and for Python.

Importing this module imports neither torch nor transformers, which takes seconds, so --help, a
preset's dry run and an error in the settings answer at once. Functions import them when needed.
"""

from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed, heartbeat, progress
from ptl_fast.base.console import columns, no_library_bars, quiet_libraries, quieted, wrapped
from ptl_fast.config import command_line
from ptl_fast.recovery.registry import trains_on_text
from ptl_fast.run import checks, early_checks, in_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptl_fast.config.config import Config
    from ptl_fast.run.context import Callback


def parse(arguments: list[str]) -> "Config":
    """Parse command-line flags, a --config file and a preset into settings.

    Raises:
        ValueError: a value has the wrong type, or there is no such preset.
        argparse.ArgumentError: there is no such flag.
    """
    # ptl_fast.config knows no recoveries, so the question whether one trains on text is handed in
    return command_line.parse(arguments, trains_on_text)


def make_config(**settings: Any) -> "Config":
    """Make settings from keyword arguments; the others get their preset's values or the defaults.

    Raises:
        ValueError: there is no such setting, or a value has the wrong type.
    """
    return command_line.make_config(settings, trains_on_text)


def compress(
    config: "Config | None",
    settings: dict[str, Any],
    *,
    tokenizer: Any,
    callbacks: "Sequence[Callback]",
    quiet: bool,
) -> dict[str, Any]:
    """Compress a model, or resume the run in its folder; return the content of report.json.

    This is ptl_fast.compress, which says what the arguments are.

    Raises:
        ValueError: a setting, the model or the data does not fit; the message names the fix.
    """
    with quieted(everything=quiet):
        if config is None:
            config = make_config(**in_memory.on_disk(settings, tokenizer))
        elif settings:
            raise ValueError(
                f"config holds all settings, and {next(iter(settings))} is given beside it; use"
                " config.changed(...)"
            )
        return run(config, callbacks=callbacks)


def planned_sizes(**settings: Any) -> list[dict[str, int]]:
    """The planned size of the original model and of the model after each round, in this order.

    This is ptl_fast.planned_sizes. Each size has num_parameters, num_layers, width and
    flops_per_token, and of a mixture of experts num_experts. Only the model's config is read, no
    weights; nothing is written.

    Raises:
        ValueError: a setting does not fit the model; the message names the fix.
    """
    from ptl_fast.model import loading
    from ptl_fast.pruning import width_multiple
    from ptl_fast.run import goals, layers_left, lengths, rounds, sizes

    # as in a dry run, no data need be named; here none need be there either
    config = make_config(**settings).changed(dry_run=True)
    _check(config, looks_at_data=False)
    assert config.model.model is not None
    original = loading.load_config(config.model.model, config.model)
    # a real run measures it on its device; here the usual answer has to do
    if config.prune.width_multiple == "auto":
        config = config.changed(width_multiple=width_multiple.TENSOR_CORE_MULTIPLE)
    checks.check_support(config, original)
    config = lengths.fitted(config, original)
    assert isinstance(config.prune.width_multiple, int)
    config, _ = goals.solved(config, original, config.prune.width_multiple)
    schedule = rounds.make_schedule(config, original)
    checks.check_expert_rows(config, original, schedule)
    length = config.data.sequence_length
    return [
        sizes.predicted_size(original, None, length),
        *(
            sizes.predicted_size(
                original, step, length, layers_left.planned(config.prune, original, step)
            )
            for step in schedule
        ),
    ]


def run(
    config: "Config", quiet: bool = False, callbacks: "Sequence[Callback]" = ()
) -> dict[str, Any]:
    """Check the settings; then start or resume the run, or print its plan with --dry-run.

    Args:
        quiet: silence the libraries' messages; progress bars and our own messages stay.
        callbacks: called after each round with its record and the model.

    Returns:
        The content of report.json; an empty dict for a dry run.

    Raises:
        ValueError: a setting, the model or the data does not fit; the message names the fix.
    """
    _check(config)
    if config.run.dry_run:
        from ptl_fast.run.dry_run import dry_run

        # the launcher's variable: a dry run joins no process group, which would need torch
        if distributed.launched_rank() == 0:
            with progress.stage("planning", lines=False):
                plan = dry_run(config)
            print(wrapped(plan, columns()))
        return {}
    # only now: it imports transformers, which a dry run may not need
    with progress.stage("loading libraries"):
        if quiet:
            quiet_libraries(config.run.log_level)
        from ptl_fast.run import loop

    with no_library_bars():
        report = loop.run(config, callbacks)
    heartbeat.leave()
    return report


def _check(config: "Config", looks_at_data: bool = True) -> None:
    """Raise ValueError for settings that contradict each other, or name what is not there."""
    config.check()
    checks.check_methods(config)
    early_checks.check(config, looks_at_data)

"""ptl_fast: make a language model smaller for reasoning, gradually (the Prune-Tune Loop of arXiv
2602.04919).

What is named here is supported, and imported when it is used: ``import ptl_fast`` is immediate.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
    from ptl_fast.run.library import (
        CompressConfig,
        collect_statistics,
        compact_,
        make_plan,
        register_recovery,
        register_scorer,
    )
    from ptl_fast.scoring.evidence import Evidence

__all__ = [
    "CompressConfig",
    "Evidence",
    "RecoveryResult",
    "RecoveryTask",
    "collect_statistics",
    "compact_",
    "compress",
    "make_plan",
    "planned_sizes",
    "register_recovery",
    "register_scorer",
]

_PLACES = {
    "Evidence": ("ptl_fast.scoring.evidence", "Evidence"),
    "RecoveryResult": ("ptl_fast.recovery.task", "RecoveryResult"),
    "RecoveryTask": ("ptl_fast.recovery.task", "RecoveryTask"),
    **{
        name: ("ptl_fast.run.library", name)
        for name in (
            "CompressConfig",
            "collect_statistics",
            "compact_",
            "make_plan",
            "register_recovery",
            "register_scorer",
        )
    },
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'ptl_fast' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def compress(
    config: "CompressConfig | None" = None,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    callbacks: "Sequence[Callable[[dict[str, Any], PreTrainedModel], object]]" = (),
    quiet: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Compress a model, or go on with the run in its folder, and return the content of report.json.

    Settings are the flags of ``ptl-fast compress`` (``ptl-fast compress --help``), such as
    ``keep=0.65``; without any, the bundled demo runs. ``model`` may also be a loaded model of
    transformers, and ``data`` a list of rows ({"question": ..., "answer": ...}) or texts; these
    need an ``output``, beside which they are written (OUTPUT.inputs).

    Args:
        config: settings at once, instead of ``settings``.
        tokenizer: of a loaded model; None takes that of the name it was loaded from.
        callbacks: called after each round with its record, as in report.json, and the model in
            memory; not for rounds that an earlier call finished.
        quiet: print nothing, not even progress. Libraries' warnings are never printed.

    Raises:
        ValueError: a setting, the model or the data does not fit; the message names the fix.
    """
    from ptl_fast.run import start  # heavy libraries are imported when work begins

    return start.compress(config, settings, tokenizer=tokenizer, callbacks=callbacks, quiet=quiet)


def planned_sizes(**settings: Any) -> list[dict[str, int]]:
    """num_parameters, num_layers, width and flops_per_token of the original and of what each round
    leaves, from the model's config alone: no weights and no data are read.

    Settings are those of ``compress``; goals (``target_params="65%"``) are solved.

    Raises:
        ValueError: as ``compress`` does for a setting or model that does not fit.
    """
    from ptl_fast.run import start

    return start.planned_sizes(**settings)


def _main(arguments: list[str]) -> int:
    """The command line in this process; returns the exit code."""
    from ptl_fast.run import command

    return command.main(arguments)


compress.main = _main  # type: ignore[attr-defined]  # compress.main([...]), beside compress(...)

"""ptl_fast: make a language model smaller for reasoning, gradually (the Prune-Tune Loop of arXiv
2602.04919).
"""

from typing import Any


def compress(**settings: Any) -> dict[str, Any]:
    """Compress a model and return the content of report.json. Settings are the flags of ``python -m
    ptl_fast.compress``.

    Raises:
        ValueError: a setting, the model or the data does not fit; the message names the fix.
    """
    from ptl_fast.run import start  # heavy libraries are imported when work begins

    return start.compress(**settings)


def planned_sizes(**settings: Any) -> list[dict[str, int]]:
    """num_parameters, num_layers, width and flops_per_token of the original and of what each round
    leaves, from the config alone.

    Raises:
        ValueError: as ``compress`` does for a setting or model that does not fit; the data is not
            read.
    """
    from ptl_fast.run import start

    return start.planned_sizes(**settings)


def _main(arguments: list[str]) -> int:
    """The command line in this process; returns the exit code."""
    from ptl_fast.run import command

    return command.main(arguments)


compress.main = _main  # type: ignore[attr-defined]  # compress.main([...]), beside compress(...)

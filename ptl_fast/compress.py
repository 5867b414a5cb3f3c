"""The command line: ``python -m ptl_fast.compress``."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from ptl_fast.base.console import first_line
from ptl_fast.config.command_line import parse

if TYPE_CHECKING:
    pass
from ptl_fast.base.console import quiet_libraries
from ptl_fast.run.loop import run

OUT_OF_MEMORY = (
    "The same command goes on from here, also with a smaller --micro-batch (training and scoring),"
    " --eval-batch (evaluation) or"
    " --grpo-micro-batch, or with --gradient-checkpointing true. What sampling for grpo needs only"
    " smaller --grpo-prompts or"
    " --grpo-rollouts lower, and those are another run."
)
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "bad_alloc",
)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command line; returns the exit code."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        config = parse(arguments)
        debug = config.debug
        config.check()
        if (
            not config.debug and not config.dry_run
        ):  # it imports transformers, which a dry run may not need
            quiet_libraries()
        run(config)
    except (ValueError, OSError, RuntimeError, MemoryError, argparse.ArgumentError) as error:
        lacks_memory = _is_out_of_memory(error)
        if debug or (isinstance(error, RuntimeError) and not lacks_memory):
            raise
        if os.environ.get("RANK", "0") == "0" or lacks_memory:
            text = (
                f"out of memory: {first_line(error)}. {OUT_OF_MEMORY}"
                if lacks_memory
                else str(error)
            )
            print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        return 130
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, CUDA, cuBLAS or torch's allocator for the CPU could not get memory: they have
    no error in common.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


if __name__ == "__main__":
    sys.exit(main())

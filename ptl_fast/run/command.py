"""What the command line does with its flags, and how it tells what went wrong."""

import argparse
import os
import sys

from ptl_fast.base.console import first_line
from ptl_fast.run import start

OUT_OF_MEMORY = (
    "The same command goes on from here, also with a smaller --micro-batch (training and scoring),"
    " --eval-batch (evaluation), --grpo-micro-batch or --opd-micro-batch, or with"
    " --gradient-checkpointing true. What sampling needs only smaller --grpo-prompts,"
    " --grpo-rollouts or --opd-prompts lower, and those are another run."
)
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "bad_alloc",
)


def main(arguments: list[str]) -> int:
    """Run what the flags say; returns the exit code: 2 for what the user can mend, told in one
    line, and 130 for an interruption.
    """
    debug = "--debug" in arguments
    try:
        config = start.parse(arguments)
        debug = config.run.debug
        start.run(config, quiet=not debug)
    except (ValueError, OSError, RuntimeError, MemoryError, argparse.ArgumentError) as error:
        lacks_memory = _is_out_of_memory(error)
        if debug or (isinstance(error, RuntimeError) and not lacks_memory):
            raise
        if os.environ.get("RANK", "0") == "0" or lacks_memory:
            text = str(error)
            if lacks_memory:
                text = f"out of memory: {first_line(error)}. {OUT_OF_MEMORY}"
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

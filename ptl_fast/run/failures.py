"""How a run's failures are told: one line with what failed, which file, why, and how to go on.

Every exception that ends the command line passes here: of settings and data, which users can mend,
of the disk, and of libraries, whose own reason is given in full.
"""

import argparse
import traceback
from pathlib import Path

from ptl_fast.base.console import first_line, lost_output, reason
from ptl_fast.base.errors import OutOfMemory, StorageFailed
from ptl_fast.base.interruption import GO_ON
from ptl_fast.base.memory import is_out_of_memory

OUT_OF_MEMORY = (
    "The same command goes on from here, also with a smaller --micro-batch (training and scoring),"
    " --eval-batch (evaluation), --grpo-micro-batch or --opd-micro-batch, or with"
    " --gradient-checkpointing true. What sampling needs only smaller --grpo-prompts,"
    " --grpo-rollouts or --opd-prompts lower, and those are another run."
)
OURS = Path(__file__).parents[1]


def is_mendable(error: Exception) -> bool:
    """Whether the message says what the user can mend, so that no traceback would say more."""
    kinds = (ValueError, OSError, argparse.ArgumentError)
    # subclasses of ValueError that Python itself raises are told like any library's
    return isinstance(error, kinds) and not isinstance(error, UnicodeError)


def told(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.filename is None and (lost := lost_output()):
        error = StorageFailed(f"standard output cannot be written: {reason(lost)}")
    if isinstance(error, OutOfMemory):
        return f"out of memory: {reason(error)}. {GO_ON[0].upper()}{GO_ON[1:]}."
    if is_out_of_memory(error):
        return f"out of memory: {first_line(error)}. {OUT_OF_MEMORY}"
    if isinstance(error, StorageFailed):
        return f"{reason(error)}. Once that is mended, {GO_ON}."
    if is_mendable(error):
        return " ".join(str(error).split()) or type(error).__name__
    return (
        f"{reason(error)} ({_place(error)}). What was finished is on disk: {GO_ON};"
        " --debug shows the traceback."
    )


def told_by_reader(error: Exception) -> str:
    """The error in one line, of a command that only reads what a run has written."""
    if is_mendable(error):
        return told(error)
    return (
        f"{reason(error)} ({_place(error)}): a file that was read is not what a run writes; the"
        " command that began the run says which one, or makes it again."
    )


def _place(error: Exception) -> str:
    """Where an unexpected error came from: the innermost of our own lines."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if OURS in Path(each.filename).parents]
    if not own:
        return "outside ptl_fast"
    return f"in {Path(own[-1].filename).relative_to(OURS.parent)}, line {own[-1].lineno}"

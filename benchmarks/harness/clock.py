"""The clock of everything that is timed on a CPU: the wall's, or, on a machine that others use too,
this process's own time.

One thread's time is the wall time that an idle machine would show: waiting for a core is not in it.
Of several threads
it is their sum, which is no time at all, so it is refused there.
"""

import argparse
import time
from collections.abc import Callable

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}
_chosen = "wall"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add --clock."""
    text = (
        "what is read on a CPU: the wall's, or this process's time with one thread, for a"
        " machine that others use too"
    )
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help=text)


def choose(name: str) -> None:
    """Set the clock of this program.

    Raises:
        ValueError: the process clock with several threads.
    """
    global _chosen
    if name == "process" and torch.get_num_threads() > 1:
        raise ValueError(
            "--clock process adds up the threads' times; set OMP_NUM_THREADS=1, or use --clock wall"
        )
    _chosen = name


def chosen() -> str:
    """The clock's name, for the results."""
    return _chosen


def now(device: torch.device | str = "cpu") -> float:
    """Seconds; on a GPU when all its work is done, and always the wall's."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return CLOCKS[_chosen]()

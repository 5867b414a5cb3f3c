"""The clocks that benchmarks read; no other module of benchmarks asks the system for the time.

On a GPU the wall clock counts. On a CPU it is the wall clock too, or, with ``--clock process``, the
CPU time of this process: on a machine that others use, waiting for a core is not in it. The CPU
time of one thread is the wall time that an idle machine would show. Several threads' CPU times add
up to more than the time that passes, so this clock is refused there.
"""

import argparse
import time
from collections.abc import Callable

import torch

wall_seconds = time.perf_counter
cpu_seconds = time.process_time
"""CPU seconds of this process, those of all its threads added up."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": wall_seconds, "process": cpu_seconds}
_chosen = "wall"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add --clock."""
    text = (
        "what is read on a CPU: the wall clock, or this process's CPU time with one thread, for a"
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
    """Seconds by the chosen clock; on a GPU by the wall clock, once all its work is done."""
    if torch.device(device).type == "cuda":
        # kernels run asynchronously: without this the time of their launches would be read
        torch.cuda.synchronize(device)
        return wall_seconds()
    return CLOCKS[_chosen]()

"""Ranks of a distributed run that begin at once: processes with the environment that torchrun
gives, forked from one that has imported what a run needs.
"""

import functools
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.processes import PRELOADED, forget_the_preloaded
from support.runs import as_flags, main

LONGEST_SECONDS = 600.0


def run_ranks(settings: dict[str, Any], folder: Path, num_ranks: int = 2) -> str:
    """``python -m ptl_fast.compress`` with these settings in ``folder``, to the end; return what
    the ranks printed.
    """
    ranks = _start(functools.partial(_compress, as_flags(settings)), folder, num_ranks)
    return _end(ranks, folder)


def _end(ranks: list[Any], folder: Path) -> str:
    """Wait for the ranks; return what they printed."""
    end = time.monotonic() + LONGEST_SECONDS
    for each in ranks:
        each.join(max(0.0, end - time.monotonic()))
    told = _told(folder, len(ranks))
    codes = [each.exitcode for each in ranks]
    _kill(ranks)
    assert codes == [0] * len(ranks), told[-3000:]
    return told


def call_on_ranks(function: Callable[[Path], None], folder: Path, num_ranks: int = 2) -> None:
    """Call a function, of a module in ``support``, with ``folder`` on each rank, to the end."""
    ranks = _start(functools.partial(function, folder), folder, num_ranks)
    _end(ranks, folder)


def kill_ranks_at(pattern: str, settings: dict[str, Any], folder: Path) -> None:
    """Run on two ranks until a file exists that the pattern names, and kill them -9."""
    ranks = _start(functools.partial(_compress, as_flags(settings)), folder, 2)
    while all(each.is_alive() for each in ranks) and not any(folder.glob(pattern)):
        time.sleep(0.02)
    _kill(ranks)
    codes = [each.exitcode for each in ranks]
    assert codes == [-signal.SIGKILL] * 2, (codes, _told(folder, 2)[-3000:])


def _start(function: Callable[[], None], folder: Path, num_ranks: int) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": num_ranks,
        "LOCAL_WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": 1,
        "TRITON_INTERPRET": 0,
    }
    ranks = []
    for rank in range(num_ranks):
        own = {**common, "RANK": rank, "LOCAL_RANK": rank}
        variables = {name: str(value) for name, value in own.items()}
        arguments = (function, folder, variables)
        ranks.append(context.Process(target=_run, args=arguments))
        ranks[-1].start()
    return ranks


def _compress(flags: list[str]) -> None:
    sys.exit(main(flags))


def _run(function: Callable[[], None], folder: Path, variables: dict[str, str]) -> None:
    forget_the_preloaded()
    os.environ.update(variables)
    os.chdir(folder)
    told = os.open(_output(folder, variables["RANK"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(told, stream)
    function()


def _output(folder: Path, rank: object) -> Path:
    return folder / f"rank-{rank}.txt"


def _told(folder: Path, num_ranks: int) -> str:
    return "".join(_output(folder, rank).read_text() for rank in range(num_ranks))


def _kill(ranks: list[Any]) -> None:
    for each in ranks:
        each.kill()
    for each in ranks:
        each.join()

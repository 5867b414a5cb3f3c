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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.processes import PRELOADED, forget_the_preloaded
from support.runs import as_flags, main

LONGEST_SECONDS = 600.0
STEPS = "steps.txt"


def run_ranks(settings: dict[str, Any], folder: Path, num_ranks: int = 2) -> str:
    """``python -m ptl_fast.compress`` with these settings in ``folder``, to the end; return what
    the ranks printed.
    """
    ranks = _start([_compress(settings)] * num_ranks, folder)
    return _end(ranks, folder)


def refused_ranks(settings: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Run with settings of its own on each rank; return what each printed. All must end with 2."""
    ranks = _start([_compress(own) for own in settings], folder)
    _end(ranks, folder, code=2)
    return [_output(folder, rank).read_text() for rank in range(len(ranks))]


def run_with_a_lost_rank(settings: dict[str, Any], folder: Path, pattern: str, sign: int) -> str:
    """Run on two ranks until a file exists that the pattern names, and send the second a signal;
    return what the first printed until it ended by itself, with 1. Five seconds of silence count as
    lost.
    """
    ranks = _start([functools.partial(_compress_impatiently, as_flags(settings))] * 2, folder)
    _await(pattern, ranks, folder)
    os.kill(ranks[1].pid, sign)
    ranks[0].join(LONGEST_SECONDS)
    code, told = ranks[0].exitcode, _output(folder, 0).read_text()
    _kill(ranks)
    assert code == 1, (code, told)
    return told


def _compress_impatiently(flags: list[str]) -> None:
    from ptl_fast.base import heartbeat

    heartbeat.INTERVAL, heartbeat.LOST = 0.5, 5.0
    sys.exit(main(flags))


def _await(pattern: str, ranks: list[Any], folder: Path) -> None:
    """Wait until a file exists that the pattern names, or a rank has ended."""
    while all(each.is_alive() for each in ranks) and not any(folder.glob(pattern)):
        time.sleep(0.02)


def _end(ranks: list[Any], folder: Path, code: int = 0) -> str:
    """Wait for the ranks, which all end with this code; return what they printed."""
    end = time.monotonic() + LONGEST_SECONDS
    for each in ranks:
        each.join(max(0.0, end - time.monotonic()))
    told = _told(folder, len(ranks))
    codes = [each.exitcode for each in ranks]
    _kill(ranks)
    assert codes == [code] * len(ranks), (codes, told[-3000:])
    return told


def run_counted_ranks(settings: dict[str, Any], folder: Path, num_ranks: int) -> int:
    """``run_ranks``; return how many optimizer steps the first rank's trainers made."""
    counted = functools.partial(_count_steps, as_flags(settings), folder)
    ranks = _start([counted] * num_ranks, folder)
    _end(ranks, folder)
    return int((folder / STEPS).read_text())


def _count_steps(flags: list[str], folder: Path) -> None:
    import transformers

    class Counted(transformers.TrainerCallback):
        steps = 0

        def on_step_end(self, *given: Any, **named: Any) -> None:
            Counted.steps += 1

    made = transformers.Trainer.__init__

    def make(self: Any, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        self.add_callback(Counted())

    transformers.Trainer.__init__ = make
    code = main(flags)
    if os.environ["RANK"] == "0":
        (folder / STEPS).write_text(str(Counted.steps))
    sys.exit(code)


def call_on_ranks(function: Callable[[Path], None], folder: Path, num_ranks: int = 2) -> None:
    """Call a function, of a module in ``support``, with ``folder`` on each rank, to the end."""
    ranks = _start([functools.partial(function, folder)] * num_ranks, folder)
    _end(ranks, folder)


def kill_ranks_at(pattern: str, settings: dict[str, Any], folder: Path, num_ranks: int = 2) -> None:
    """Run until a file exists that the pattern names, and kill the ranks -9."""
    ranks = _start([_compress(settings)] * num_ranks, folder)
    _await(pattern, ranks, folder)
    _kill(ranks)
    codes = [each.exitcode for each in ranks]
    assert codes == [-signal.SIGKILL] * num_ranks, (codes, _told(folder, num_ranks)[-3000:])


def _start(functions: Sequence[Callable[[], None]], folder: Path) -> list[Any]:
    """One rank for each function."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": len(functions),
        "LOCAL_WORLD_SIZE": len(functions),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": 1,
        "TRITON_INTERPRET": 0,
    }
    ranks = []
    for rank, function in enumerate(functions):
        own = {**common, "RANK": rank, "LOCAL_RANK": rank}
        variables = {name: str(value) for name, value in own.items()}
        arguments = (function, folder, variables)
        ranks.append(context.Process(target=_run, args=arguments))
        ranks[-1].start()
    return ranks


def _compress(settings: dict[str, Any]) -> Callable[[], None]:
    return functools.partial(_exit_as_main, as_flags(settings))


def _exit_as_main(flags: list[str]) -> None:
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

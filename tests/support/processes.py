"""Runs in processes of their own that begin at once and end by kill -9."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from support.runs import main

# What a run imports; a process that is forked from one that has imported it has it at once.
PRELOADED = [
    "support.libraries",
    "support.processes",
    "ptl_fast.run.loop",
    "transformers.trainer",
    "ptl_fast.recovery.on_policy.train",
]

# Python's audit events of these changes; each comes just before the change
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")


def kill_when(appears: str, flags: list[str], folder: Path) -> bool:
    """``python -m ptl_fast.compress FLAGS`` in a folder and a process of its own, which ends by
    kill -9 as soon as a file appears that was not there before; False if the run ended first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(appears, flags, folder))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _run(appears: str, flags: list[str], folder: Path) -> None:
    forget_the_preloaded()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    _die_when(appears, folder)
    sys.exit(main(flags))


def forget_the_preloaded() -> None:
    """A recovery ends with several garbage collections, which need not look at the libraries. And
    nothing waits for disks, as in the tests' own process.
    """
    gc.freeze()
    without_waiting_for_disks()


def without_waiting_for_disks() -> None:
    """What a process has written outlives its kill -9 also without fsync, which only a failure of
    the machine makes a difference to; a run of a few seconds calls it hundreds of times.
    """
    os.fsync = os.fstat  # type: ignore[assignment]  # it refuses what is no open file, too


def _die_when(appears: str, folder: Path) -> None:
    """Looked for at each of this process's own changes of files, so that a busy machine, or a run
    of milliseconds, misses none.
    """
    before = set(folder.glob(appears))

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event not in CHANGES:
            return
        with contextlib.suppress(FileNotFoundError):  # a folder that goes while it is listed
            if set(folder.glob(appears)) - before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)

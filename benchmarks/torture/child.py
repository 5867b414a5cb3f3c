"""A run of the command line in a process of its own, with a fault at a chosen moment.

Moments are counted by Python's audit events: every time that the run is about to open a file in
the folder for writing, or to make, rename or delete one. Weights are written by safetensors' Rust,
which has no events, between the events around it.
"""

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a run imports, deepspeed where it is installed: a fork has it at once.
PRELOADED = ["benchmarks.torture.child", "ptl_fast.run.loop", "transformers.trainer", "deepspeed"]
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "open")
WRITING = os.O_WRONLY | os.O_RDWR
MEMORY_BYTES = 16 * 2**30
FAULTS = {"full": errno.ENOSPC, "broken": errno.EIO}


@dataclass(frozen=True)
class Fault:
    """What happens to a run, and when."""

    kind: str = "none"
    """none, kill, or one of FAULTS: that error, from this moment on."""

    moment: int = 0
    """At which change of the folder, from 1."""

    seconds: float | None = None
    """For kill: after so many seconds instead."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    """Its exit code; -9 after a kill."""

    told: str
    """What it wrote to stderr."""

    num_changes: int
    """How often it was about to change its folder."""

    timed_out: bool = False


def run(flags: list[str], folder: Path, fault: Fault | None = None, timeout: float = 300) -> Ended:
    """``ptl-fast compress FLAGS --output FOLDER/run`` in ``folder``, which must exist."""
    return run_command(
        ["compress", *flags, "--output", str(folder / "run")], folder, fault, timeout
    )


def run_command(
    words: list[str], folder: Path, fault: Fault | None = None, timeout: float = 300
) -> Ended:
    """``ptl-fast WORDS`` in ``folder``, whose changes are counted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    fault = fault or Fault()
    process = context.Process(target=_begin, args=(words, folder, fault))
    process.start()
    process.join(timeout if fault.seconds is None else fault.seconds)
    timed_out = process.is_alive()
    if timed_out:
        process.kill()
        process.join()
    changes = folder / "changes"
    code = process.exitcode if process.exitcode is not None else -signal.SIGKILL
    return Ended(
        code,
        (folder / "stderr").read_text(errors="replace") if (folder / "stderr").exists() else "",
        changes.stat().st_size if changes.exists() else 0,
        timed_out and fault.seconds is None,
    )


def run_ranks(flags: list[str], folder: Path, seconds: float | None = None) -> Ended:
    """The same on two ranks by torchrun; with ``seconds`` all of them are killed after so many."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [sys.executable, "-m", *launcher, "ptl_fast.compress", *flags]
    with open(folder / "stdout", "w") as said, open(folder / "stderr", "w") as told:
        process = subprocess.Popen(
            [*command, "--output", str(folder / "run")],
            cwd=folder,
            stdout=said,
            stderr=told,
            start_new_session=True,
            # an abort in a library says where it was
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        try:
            process.wait(600 if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            # torchrun's ranks have process groups of their own
            _kill(_descendants(process.pid))
            process.wait()
    return Ended(process.returncode, (folder / "stderr").read_text(errors="replace"), 0)


def _descendants(process: int) -> list[int]:
    """The process, its children, theirs, and so on."""
    found = [process]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def _kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _begin(words: list[str], folder: Path, fault: Fault) -> None:
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    changes = os.open("changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    own, count = f"{folder}{os.sep}", 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES or not str(arguments[0]).startswith(own):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        os.write(changes, b".")
        count += 1
        if count >= fault.moment > 0:
            _happen(fault, str(arguments[0]), count)

    sys.addaudithook(watch)
    from ptl_fast.run.subcommands import main

    code = main(words)
    sys.stdout.flush()
    sys.exit(code)


def _happen(fault: Fault, path: str, count: int) -> None:
    if fault.kind == "kill" and count == fault.moment:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    if fault.kind in FAULTS:
        number = FAULTS[fault.kind]
        raise OSError(number, os.strerror(number), path)

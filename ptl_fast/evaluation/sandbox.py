"""Generated code, executed apart: a child process with limits on time, memory, files, processes and
the network.

What the child may not do, and what sees to it:

- run long, take much memory, open many files, make a file grow: resource limits;
- create, change, remove or execute any file: Landlock (Linux 5.13);
- start processes or threads, send signals, open sockets: a seccomp filter (Linux on x86-64 and
  aarch64);
- use root's capabilities, or see this process's environment: they are dropped.

None of this needs privileges. Where the kernel lacks one, ``missing_protections`` names it and the
resource limits remain.

What it does not protect from: the child may read every file that its user may read (but has nowhere
to send it); code that searches the interpreter for the word that reports success can pretend to
have passed; and a flaw in the kernel is a way out. For code that someone wrote to do harm, use a
virtual machine.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

# The same modules as here, wherever Python has them from.
CHILD = f"import sys; sys.path[:] = {sys.path!r}\nfrom ptl_fast.evaluation.sandbox_child import main\nmain()"
MAX_REPORT_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 5
    """Processor time decides, so that a busy machine does not change results."""

    wall_seconds: float = 30.0
    """For programs that sleep or wait."""

    memory_bytes: int = 2**30
    """Address space."""

    num_open_files: int = 64


def passes(program: str, tests: str, limits: Limits | None = None) -> bool:
    """Whether ``program`` and then ``tests``, in one namespace, run to their end in a child
    process.

    Raises:
        ValueError: the child could not begin, which says nothing about the program.
    """
    return _run([program, tests], limits or Limits())[0]


def missing_protections() -> list[str]:
    """Protections that this system does not offer, of: privileges, landlock, seccomp.

    Raises:
        ValueError: the sandbox does not work here.
    """
    _, report = _run([""], Limits())
    return json.loads(report)


def _run(sources: Sequence[str], limits: Limits) -> tuple[bool, bytes]:
    """Execute the sources; return whether all ended, and the first line of the child's report."""
    word = secrets.token_hex(16)
    for_child = {
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "num_open_files": limits.num_open_files,
    }
    job = json.dumps({"sources": sources, "word": word, "limits": for_child}).encode()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as stdin:
        stdin.write(job)
        stdin.seek(0)
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as report:
            try:
                child = subprocess.Popen(
                    [sys.executable, "-c", CHILD, str(writing)],
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=folder,
                    env=_environment(),
                    pass_fds=[writing],
                    start_new_session=True,
                )
            finally:
                os.close(writing)
            try:
                said = _read(report.fileno(), time.monotonic() + limits.wall_seconds)
            finally:
                # not waited for yet, so its number still is the group's
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    first, began, rest = said.partition(b"\n")
    if not began:
        raise ValueError(
            f"the sandbox's child process ended with status {child.returncode} before it ran"
            " anything; see whether"
            f" {sys.executable} starts, and whether {limits.memory_bytes / 2**20:.0f} MiB of"
            " address space are enough for it"
        )
    return rest == word.encode(), first


def _read(descriptor: int, deadline: float) -> bytes:
    """What arrives until the other end is closed, the deadline, or more than any report."""
    said = b""
    while len(said) < MAX_REPORT_BYTES:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, MAX_REPORT_BYTES) if ready else b""
        if not chunk:
            break
        said += chunk
    return said


def _environment() -> dict[str, str]:
    """Nothing of ours but where libraries lie. Hashes are fixed, so that a program's result is too;
    threads may not start.
    """
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **kept}

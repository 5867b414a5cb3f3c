"""Sandbox for generated code: a child process with restricted time, memory, files and network.

The child is prevented from:

- using much CPU time or memory, opening many files, growing a file, by resource limits;
- creating, changing, removing or executing any file, and opening devices and any data, by Landlock
  (Linux 5.13 or newer);
- all that a program which computes and reads has no need of, by a seccomp filter that lets through
  a list of system calls (Linux on x86-64 and aarch64; base/system_calls.py): processes, threads,
  signals, sockets, shared memory, other processes' limits, priorities and memory;
- signals by other ways, such as those that the kernel sends at input on a pipe, by the filter and
  by Landlock's scope (Linux 6.12 or newer);
- leaving shared memory behind, by the filter and by a namespace of its own;
- using root's capabilities, which are dropped, or this process's environment, which it never gets.

None of this needs privileges. Where the system lacks one of these, ``missing_protections`` names it
and the others remain. A run refuses to execute generated code where there is no seccomp filter.

Tests are judged outside of the program: its process gives values, and the tests run in another,
which alone knows what is expected and can report success (judge.py, remote_objects.py). Nothing
that a program does in its own process makes a wrong value right.

Where Landlock is, files are read in Python's own folders and the system's alone, so not the
benchmark's answers. Not prevented: without Landlock the child can read every file that its user can
read (but has nowhere to send it); and a kernel vulnerability is a way out. For code that may be
hostile, use a virtual machine.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

# Gets this process's import path, so that it finds the same ptl_fast however that was installed.
CHILD = (
    f"import sys; sys.path[:] = {sys.path!r}\n"
    "from ptl_fast.evaluation.sandbox_child import main\nmain()"
)
# The report is two short lines.
MAX_REPORT_BYTES = 4096
PASSED = b"passed"
# Until Python has started: a busy machine must not change results.
STARTING_SECONDS = 120.0


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program."""

    cpu_seconds: int = 5
    """CPU time, not wall time, decides in general: a busy machine must not change results."""

    wall_seconds: float = 30.0
    """Stops programs that sleep or wait, and so use no CPU time."""

    memory_bytes: int = 2**30
    """Virtual address space, Python included."""

    num_open_files: int = 64


def passes(program: str, tests: str, limits: Limits | None = None) -> bool:
    """Whether ``program`` and then ``tests`` run to their end, in one namespace, in the sandbox.

    False after an exception, an exit or a limit. Starts one Python process, which forks once: the
    program and the tests run apart, each within the limits.

    Raises:
        ValueError: the child failed before it ran the program: the system's fault, not the code's.
    """
    return _run(program, tests, limits or Limits())[0]


def missing_protections() -> list[str]:
    """The protections that this system lacks, out of: namespaces, privileges, landlock, signal
    scope, seccomp. Each was tried in a child, and is named unless it held.

    Raises:
        ValueError: the sandbox's child process does not start on this system.
    """
    _, report = _run("", "", Limits())
    return json.loads(report)


def _run(program: str, tests: str, limits: Limits) -> tuple[bool, bytes]:
    """Execute both; return (whether they ran to their end, first line of the child's report).

    The judge in the child reports on a pipe: first the missing protections, as JSON, then success.
    """
    for_child = {
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "num_open_files": limits.num_open_files,
    }
    job = json.dumps({"program": program, "tests": tests}).encode()
    # stdin is a file: writing a large job to a pipe would block until the child reads it
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as stdin:
        stdin.write(job)
        stdin.seek(0)
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as report:
            try:
                child = subprocess.Popen(
                    [sys.executable, "-c", CHILD, str(writing), json.dumps(for_child)],
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=folder,
                    env=_environment(),
                    pass_fds=[writing],
                    start_new_session=True,
                )
            finally:
                # the child has the only writing end now: its death ends the report
                os.close(writing)
            try:
                said = _read(report.fileno(), STARTING_SECONDS, 1)
                said += _read(report.fileno(), limits.wall_seconds)
            finally:
                # before wait(): until then the system gives the process id to nobody else
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
    return rest == PASSED, first


def _read(descriptor: int, seconds: float, num_chunks: int | None = None) -> bytes:
    """Read until the other end is closed, or for so long, or MAX_REPORT_BYTES or ``num_chunks``."""
    said, deadline = b"", time.monotonic() + seconds
    while len(said) < MAX_REPORT_BYTES and num_chunks != 0:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, MAX_REPORT_BYTES) if ready else b""
        if not chunk:
            break
        said += chunk
        num_chunks = None if num_chunks is None else num_chunks - 1
    return said


def _environment() -> dict[str, str]:
    """The child's environment: none of ours but LD_LIBRARY_PATH.

    The fixed hash seed makes a program's result reproducible. Thread counts are 1, as numeric
    libraries would otherwise start threads on import, which seccomp refuses.
    """
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **kept}

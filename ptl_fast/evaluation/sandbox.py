"""Sandbox for generated code: a child process with restricted time, memory, files and network.

The child is prevented from:

- using much CPU time or memory, opening many files, growing a file, by resource limits;
- creating, changing, removing or executing any file, and opening devices, by Landlock (Linux 5.13
  or newer);
- all that a program which computes and reads has no need of, by a seccomp filter that lets through
  a list of system calls (Linux on x86-64 and aarch64; base/system_calls.py): processes, threads,
  signals, sockets, shared memory, other processes' limits, priorities and memory;
- signals by other ways, such as those that the kernel sends at input on a pipe, by the filter and
  by Landlock's scope (Linux 6.12 or newer);
- leaving shared memory behind, by the filter and by a namespace of its own;
- using root's capabilities, which are dropped, or this process's environment, which it never gets.

None of this needs privileges. Where the system lacks one of these, ``missing_protections`` names it
and the others remain. A run refuses to execute generated code where there is no seccomp filter.

Tests are judged from outside of the program where they assert that two things are equal: an object
that equals everything passes for nothing else, and its frames do not hold what is expected
(assertions.py).

Not prevented: the child can read every file that its user can read (but has nowhere to send it),
and take from a named pipe what another process waits for; code that knows this judge and searches
the interpreter's memory for the word that reports success, or changes the modules that its tests
use, can fake a pass; and a kernel vulnerability is a way out. For code that may be hostile, use a
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
from dataclasses import dataclass

# Gets this process's import path, so that it finds the same ptl_fast however that was installed.
CHILD = (
    f"import sys; sys.path[:] = {sys.path!r}\n"
    "from ptl_fast.evaluation.sandbox_child import main\nmain()"
)
# The report is two short lines; more can only come from a program that writes to the pipe.
MAX_REPORT_BYTES = 4096


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

    False after an exception, an exit or a limit. Starts one Python process.

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

    The child reports on a pipe: first the missing protections, as JSON, then ``word`` on success.
    """
    # random, so that a program cannot report success without having found the child's copy
    word = secrets.token_hex(16)
    for_child = {
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "num_open_files": limits.num_open_files,
    }
    content = {"program": program, "tests": tests, "word": word, "limits": for_child}
    job = json.dumps(content).encode()
    # stdin is a file: writing a large job to a pipe would block until the child reads it
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
                # the child has the only writing end now: its death ends the report
                os.close(writing)
            try:
                said = _read(report.fileno(), time.monotonic() + limits.wall_seconds)
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
    return rest == word.encode(), first


def _read(descriptor: int, deadline: float) -> bytes:
    """Read until the other end is closed, ``deadline`` (monotonic) or MAX_REPORT_BYTES."""
    said = b""
    while len(said) < MAX_REPORT_BYTES:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, MAX_REPORT_BYTES) if ready else b""
        if not chunk:
            break
        said += chunk
    return said


def _environment() -> dict[str, str]:
    """The child's environment: none of ours but LD_LIBRARY_PATH.

    The fixed hash seed makes a program's result reproducible. Thread counts are 1, as numeric
    libraries would otherwise start threads on import, which seccomp refuses.
    """
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **kept}

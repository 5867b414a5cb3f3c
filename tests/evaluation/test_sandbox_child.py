"""The child runs the job on its standard input, and its judge alone reports."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptl_fast.evaluation.sandbox_child import PASSED
from support.judging import LIMITS


def report_of(program: str, tests: str = "") -> list[bytes]:
    """The lines that the child writes to its pipe."""
    reading, writing = os.pipe()
    job = json.dumps({"program": program, "tests": tests})
    code = "from ptl_fast.evaluation.sandbox_child import main; main()"
    subprocess.run(
        [sys.executable, "-c", code, str(writing), json.dumps(LIMITS)],
        input=job.encode(),
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    os.close(writing)
    with open(reading, "rb") as report:
        return report.read().split(b"\n")


def test_success_comes_after_the_tests() -> None:
    missing, success = report_of("x = 1", "assert x == 1")
    assert isinstance(json.loads(missing), list)
    assert success == PASSED


def test_no_success_after_an_error_or_an_early_exit() -> None:
    assert report_of("x = 1", "assert x == 2")[1] == b""
    assert report_of("import sys; sys.exit(0)")[1] == b""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills with the parent")
def test_the_program_dies_with_its_judge() -> None:
    code = (
        "import os; from ptl_fast.evaluation.sandbox import passes;"
        "passes('import time; time.sleep(50)', '')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        judge = _child_of(process.pid)
        program = _child_of(judge)
        # it sleeps, all rights given up
        states = [Path(f"/proc/{each}/status") for each in (judge, program)]
        while not all("Seccomp:\t2" in state.read_text() for state in states):
            time.sleep(0.01)
        process.kill()
    for _ in range(1000):
        if not any(map(_lives, states)):
            return
        time.sleep(0.01)
    raise AssertionError("it lives on")


def _child_of(process: int) -> int:
    children = Path(f"/proc/{process}/task/{process}/children")
    while not (child := children.read_text().strip()):
        time.sleep(0.01)
    return int(child.split()[0])


def _lives(status: Path) -> bool:
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False

"""The child runs the job on its standard input, and reports by the word alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMITS = {"cpu_seconds": 5, "memory_bytes": 2**30, "num_open_files": 64}


def report_of(program: str, tests: str = "") -> list[bytes]:
    """The lines that the child writes to its pipe."""
    reading, writing = os.pipe()
    job = json.dumps({"program": program, "tests": tests, "word": "told", "limits": LIMITS})
    code = "from ptl_fast.evaluation.sandbox_child import main; main()"
    subprocess.run(
        [sys.executable, "-c", code, str(writing)],
        input=job.encode(),
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    os.close(writing)
    with open(reading, "rb") as report:
        return report.read().split(b"\n")


def test_the_word_comes_after_the_tests() -> None:
    missing, word = report_of("x = 1", "assert x == 1")
    assert isinstance(json.loads(missing), list)
    assert word == b"told"


def test_no_word_after_an_error_or_an_early_exit() -> None:
    assert report_of("x = 1", "assert x == 2")[1] == b""
    assert report_of("import sys; sys.exit(0)")[1] == b""


def test_neither_the_pipe_nor_the_job_is_told_to_the_program() -> None:
    program = "import sys; assert sys.argv[1:] == []; assert sys.stdin.read() == ''"
    assert report_of(program)[1] == b"told"


def test_program_and_tests_share_one_module_of_their_own() -> None:
    assert report_of("import program", "assert __name__ == 'program' and program")[1] == b"told"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills with the parent")
def test_the_program_dies_with_its_judge() -> None:
    judge = (
        "import os; from ptl_fast.evaluation.sandbox import passes;"
        "passes('import time; time.sleep(50)', '')"
    )
    with subprocess.Popen([sys.executable, "-c", judge], stdout=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().strip()):
            time.sleep(0.01)
        # it sleeps, all rights given up
        status = Path(f"/proc/{child}/status")
        while "Seccomp:\t2" not in status.read_text():
            time.sleep(0.01)
        process.kill()
    for _ in range(1000):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.01)
    raise AssertionError("it lives on")

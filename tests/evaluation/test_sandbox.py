"""Generated code passes only by running its tests to the end, within its limits."""

import dataclasses
import os
import time

import pytest

from ptl_fast.evaluation import sandbox
from ptl_fast.evaluation.sandbox import Limits, passes

QUICK = Limits(cpu_seconds=1, wall_seconds=5.0)


def test_right_code_passes_and_wrong_code_does_not() -> None:
    tests = "assert double(4) == 8\nassert double('a') == 'aa'"
    assert passes("def double(x):\r\n    return x * 2", tests)
    assert not passes("def double(x):\n    return 8", tests)
    assert not passes("def double(x) return", tests)
    assert not passes("", tests)


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "quit()",
        (
            "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[]\\n')\n    except"
            " OSError:"
            " pass\nos._exit(0)"
        ),
        "import atexit, os\natexit.register(lambda: os._exit(0))",
        "import sys\nsys.stdin.seek(0)\nprint(sys.stdin.read())\nos._exit(0)",
    ],
)
def test_ending_early_is_no_pass(program: str) -> None:
    assert not passes(program, "assert False", QUICK)
    assert not passes("", program + "\nassert False", QUICK)


@pytest.mark.parametrize(
    "program",
    [
        "import builtins\nbuiltins.exec = builtins.eval = lambda *a, **k: None",
        "import builtins\nbuiltins.compile = lambda *a, **k: ''",
        "import builtins\nbuiltins.set = lambda x: 0\nf = int",
        "class Any:\n    __eq__ = lambda *a: True\n    __hash__ = int\ndef f(x): return Any()",
        "class Any(int):\n    __eq__ = lambda *a: True\n    __hash__ = int\nf = Any",
        "from unittest.mock import ANY\nf = lambda x: ANY",
        "import sys\nf = lambda x: sys._getframe(1).f_code.co_consts[{2: 1, 3: 3}[x]]",
        "import sys\nsys._getframe(1).f_locals['job'].clear()\nf = int",
        "import sys\ndef jump(frame, *a):\n    frame.f_lineno = 2\n    return jump\n"
        "sys.settrace(jump)\nf = int",
    ],
)
def test_a_program_that_fools_its_judge_is_wrong(program: str) -> None:
    assert not passes(program, "assert f(2) == 4\nassert set([f(3)]) == set([9])", QUICK)


def test_output_is_swallowed() -> None:
    assert passes(
        "import sys\nfor _ in range(100_000):\n    print('x' * 100)\n    print('y',"
        " file=sys.stderr)",
        "assert True",
    )
    assert passes("", "try:\n    input()\n    assert False\nexcept EOFError: pass"), (
        "there is no input"
    )


def test_an_endless_loop_and_a_sleeper_end_in_time() -> None:
    start = time.process_time(), time.monotonic()
    assert not passes("while True:\n    pass", "", QUICK)
    assert not passes(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
        "",
        QUICK,
    )
    assert not passes(
        "import time\ntime.sleep(60)", "", dataclasses.replace(QUICK, wall_seconds=0.5)
    )
    assert time.monotonic() - start[1] < 30
    assert time.process_time() - start[0] < 1, "this process only waits"


def test_a_memory_hog_ends() -> None:
    hog = "block = bytearray(256 * 2**20)"
    assert passes(hog, "assert len(block)")
    assert not passes(
        hog, "assert len(block)", dataclasses.replace(QUICK, memory_bytes=128 * 2**20)
    )
    assert not passes("rows = []\nwhile True:\n    rows.append(' ' * 2**20)", "", QUICK)


def test_it_sees_no_secret_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    tests = (
        "assert 'HF_TOKEN' not in os.environ, os.environ\nassert os.listdir() == []\nassert"
        " os.path.realpath('.') != here"
    )
    assert passes(f"import os\nhere = {os.path.realpath('.')!r}", tests)


def test_of_the_systems_settings_it_reads_what_python_needs() -> None:
    opened = """
def reads(name):
    try:
        return bool(open(name).read(1))
    except OSError:
        return False
"""
    assert passes(opened, "assert reads('/etc/passwd')")
    for name in ("/etc/shadow", "/etc/hostname", "/etc/fstab"):
        assert passes(opened, f"assert not reads({name!r})"), name


def test_results_do_not_depend_on_hash_seeds() -> None:
    program = "order = list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    outcomes = {passes(program, f"assert order[0] == {letter!r}") for letter in "abcdefgh"}
    assert outcomes == {True, False}, "exactly one letter comes first"
    first = next(
        letter for letter in "abcdefgh" if passes(program, f"assert order[0] == {letter!r}")
    )
    assert all(passes(program, f"assert order[0] == {first!r}") for _ in range(4))


def test_a_sandbox_that_does_not_work_is_an_error_and_no_wrong_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "CHILD", "raise SystemExit(3)")
    with pytest.raises(ValueError, match="status 3 before it ran anything"):
        passes("", "")

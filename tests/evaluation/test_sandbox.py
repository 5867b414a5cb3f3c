"""Generated code passes only by running its tests to the end, and can neither escape its limits nor
change anything.
"""

import dataclasses
import os
import time
from pathlib import Path

import pytest

from ptl_fast.evaluation import sandbox
from ptl_fast.evaluation.sandbox import Limits, passes

MISSING = sandbox.missing_protections()
needs_seccomp = pytest.mark.skipif(
    "seccomp" in MISSING, reason="this system has no seccomp filters"
)
needs_landlock = pytest.mark.skipif("landlock" in MISSING, reason="this kernel has no Landlock")
QUICK = Limits(cpu_seconds=1, wall_seconds=5.0)
# refused(action) is True where the action raised an error
REFUSED = (
    "def refused(action):\n    try:\n        action()\n    except (OSError, RuntimeError,"
    " ValueError):\n        return True\n"
)


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


@needs_seccomp
@pytest.mark.parametrize(
    "action",
    [
        "import os\naction = os.fork",
        "import subprocess\naction = lambda: subprocess.run(['true'])",
        "import os\naction = lambda: os.posix_spawn('/bin/true', ['true'], {})",
        "import threading\naction = threading.Thread(target=print).start",
        "import socket\naction = socket.socket",
        "import os\naction = lambda: os.kill(os.getppid(), 0)",
        "import os\naction = lambda: os.kill(-1, 0)",
    ],
    ids=["fork", "subprocess", "spawn", "thread", "socket", "kill-parent", "kill-all"],
)
def test_no_processes_threads_sockets_or_signals(action: str) -> None:
    assert passes(REFUSED + action, "assert refused(action)")
    assert not passes(REFUSED + "action = print", "assert refused(action)"), "the check can fail"


def test_a_fork_that_gets_through_would_count(tmp_path: Path) -> None:
    """Sixteen tries, not a bomb: none may leave a process behind."""
    program = (
        "import os\nstarted = 0\nfor _ in range(16):\n    try:\n        started +="
        " bool(os.fork())\n    except OSError: pass"
    )
    if "seccomp" in MISSING and os.geteuid() == 0:
        pytest.skip("root has no limit on processes, and this system has no seccomp filters")
    assert passes(program, "assert started == 0", QUICK)


@needs_landlock
def test_nothing_is_written_removed_or_executed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    for action in (
        f"open({str(precious)!r}, 'w')",
        f"open({str(precious)!r}, 'a')",
        f"os.truncate({str(precious)!r}, 0)",
        f"os.remove({str(precious)!r})",
        f"os.rename({str(precious)!r}, {str(tmp_path / 'moved')!r})",
        f"os.mkdir({str(tmp_path / 'folder')!r})",
        f"os.symlink('a', {str(tmp_path / 'link')!r})",
        f"os.chmod({str(precious)!r}, 0)",
        "open('here', 'w')",
        "os.execv('/bin/true', ['true'])",
    ):
        assert passes(
            REFUSED + f"import os\naction = lambda: {action}", "assert refused(action)"
        ), action
    assert precious.read_text() == "data"
    assert list(tmp_path.iterdir()) == [precious]


def test_no_file_grows_even_without_landlock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without = (
        "from ptl_fast.base import restricted_child as child\n"
        "child.PROTECTIONS = dict.fromkeys(child.PROTECTIONS, lambda libc: False)\n"
    )
    path, *rest = sandbox.CHILD.split("\n")
    monkeypatch.setattr(sandbox, "CHILD", "\n".join([path, without, *rest]))
    assert sandbox.missing_protections() == ["privileges", "landlock", "seccomp"]
    file = tmp_path / "file"
    program = REFUSED + (
        f"def action():\n    with open({str(file)!r}, 'w') as file:\n        file.write('x' *"
        " 100_000)"
    )
    assert passes(program, "assert refused(action)")
    assert file.stat().st_size == 0


def test_it_sees_no_secret_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    tests = (
        "assert 'HF_TOKEN' not in os.environ, os.environ\nassert os.listdir() == []\nassert"
        " os.path.realpath('.') != here"
    )
    assert passes(f"import os\nhere = {os.path.realpath('.')!r}", tests)


@needs_landlock
def test_the_parents_environment_cannot_be_read() -> None:
    assert passes(
        REFUSED + "import os\naction = lambda: open(f'/proc/{os.getppid()}/environ').read()",
        "assert refused(action)",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")
def test_root_gives_up_its_capabilities() -> None:
    capabilities = "status = open('/proc/self/status').read().split('CapEff:')[1].split()[0]"
    assert passes(capabilities, "assert int(status, 16) == 0")


def test_limits_cannot_be_raised() -> None:
    action = (
        "import resource\naction = lambda: resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))"
    )
    if "privileges" in MISSING and os.geteuid() == 0:
        pytest.skip("root could not give up its capabilities here")
    assert passes(REFUSED + action, "assert refused(action)")


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

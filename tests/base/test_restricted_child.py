"""A restricted process can neither write, nor start others, nor raise its limits."""

import os
from pathlib import Path

import pytest

from ptl_fast.base import restricted_child
from ptl_fast.evaluation import sandbox
from ptl_fast.evaluation.sandbox import Limits, passes

MISSING = sandbox.missing_protections()


needs_seccomp = pytest.mark.skipif(
    "seccomp" in MISSING, reason="this system has no seccomp filters"
)


needs_landlock = pytest.mark.skipif("landlock" in MISSING, reason="this kernel has no Landlock")


# refused(action) is True where the action raised an error
REFUSED = (
    "def refused(action):\n    try:\n        action()\n    except (OSError, RuntimeError,"
    " ValueError):\n        return True\n"
)


QUICK = Limits(cpu_seconds=1, wall_seconds=5.0)


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
    assert sandbox.missing_protections() == list(restricted_child.PROTECTIONS)
    file = tmp_path / "file"
    program = REFUSED + (
        f"def action():\n    with open({str(file)!r}, 'w') as file:\n        file.write('x' *"
        " 100_000)"
    )
    assert passes(program, "assert refused(action)")
    assert file.stat().st_size == 0


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


@pytest.mark.parametrize("name", restricted_child.PROTECTIONS)
def test_a_protection_that_does_not_hold_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's answers are not believed: the calls succeed, and nothing comes of them."""
    path, *rest = sandbox.CHILD.split("\n")
    lies = (
        "import os\n"
        "from ptl_fast.base import restricted_child as child\n"
        "class Liar:\n"
        "    def __init__(self, libc): self.libc = libc\n"
        "    def __getattr__(self, called):\n"
        "        inert = ('unshare', 'prctl', 'capset', 'syscall')\n"
        "        called_of = (lambda *given: os.dup(2)) if called in inert else None\n"
        "        return called_of or getattr(self.libc, called)\n"
        f"child.PROTECTIONS = {{{name!r}: lambda libc, apply=child.PROTECTIONS[{name!r}]:"
        " apply(Liar(libc))}\n"
    )
    monkeypatch.setattr(sandbox, "CHILD", "\n".join([path, lies, *rest]))
    assert sandbox.missing_protections() == [name]


PROGRAMS = {
    "numpy": (
        "import numpy as np\n"
        "a = np.random.default_rng(0).random((30, 30)) + 30 * np.eye(30)\n"
        "found = abs(np.linalg.inv(a) @ a - np.eye(30)).max() + len(np.linalg.svd(a)[1]) - 30"
    ),
    "mathematics": (
        "import cmath, decimal, fractions, math, random, statistics\n"
        "found = math.gcd(4, 6) - fractions.Fraction(4, 2) + cmath.phase(1) + random.random() * 0"
    ),
    "texts": (
        "import collections, heapq, itertools, json, re, string\n"
        "found = len(re.findall(r'a+', 'baab')) - len(json.loads('[1]')) + int(heapq.heappop([0]))"
    ),
    "dates and the clock": (
        "import calendar, datetime, time\n"
        "time.sleep(0.001)\n"
        "found = (datetime.date(2024, 3, 1) - datetime.date(2024, 2, 29)).days - 1"
    ),
    "the system": (
        "import os, pathlib, platform, signal, threading, uuid\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.alarm(0)\n"
        "with threading.Lock():\n"
        "    found = len(os.listdir('.')) + (os.getpid() <= 0) + len(pathlib.Path('.').name)"
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ordinary_programs_run(name: str) -> None:
    assert passes(PROGRAMS[name], "assert abs(float(found)) < 1e-9")


@needs_landlock
def test_devices_are_not_opened_but_the_harmless() -> None:
    program = (
        "import os\n"
        "found = []\n"
        "for folder, _, names in os.walk('/dev'):\n"
        "    for name in names:\n"
        "        path = os.path.join(folder, name)\n"
        "        if not os.path.islink(path):\n"
        "            try: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))\n"
        "            except OSError: continue\n"
        "            found.append(path)"
    )
    harmless = ["/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"]
    assert passes(program, f"assert sorted(found) == {harmless}, found")


def test_a_limit_that_is_lower_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process started under ulimit may not raise its children's again."""
    before, after = {1: (50, 100), 2: (0, -1)}, {}
    monkeypatch.setattr(restricted_child.resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(restricted_child.resource, "getrlimit", before.__getitem__)
    monkeypatch.setattr(restricted_child.resource, "setrlimit", after.__setitem__)
    restricted_child._lower(1, 200, 300)
    restricted_child._lower(2, 200, 300)
    assert after == {1: (100, 100), 2: (200, 300)}


@needs_landlock
def test_data_is_not_read_but_python_and_the_system_are(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("{}")
    program = REFUSED + f"action = lambda: open({str(tmp_path / 'answers.jsonl')!r})"
    assert passes(program, "assert refused(action)")
    assert passes("import csv, numpy\nfound = open('/proc/self/status').read()", "assert found")

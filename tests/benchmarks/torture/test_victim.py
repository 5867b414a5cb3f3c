"""No program in the sandbox changes anything outside, as root and as an ordinary user; without the
sandbox's protections the same programs do.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.torture.programs import HOSTILE
from ptl_fast.evaluation import sandbox

ROOT = Path(__file__).parents[3]
NOBODY = 65534
USERS = [None, NOBODY] if os.geteuid() == 0 else [None]
MISSING = sandbox.missing_protections()


@pytest.fixture(scope="session")
def pythons() -> dict[int | None, str | None]:
    """{user: a Python that this user may start}: root's own may be in root's folder."""

    def starts(python: str | None, user: int) -> bool:
        try:
            subprocess.run([python, "-c", "import ptl_fast"], check=True, **_as(user))
        except (OSError, TypeError, subprocess.CalledProcessError):
            return False
        return True

    found = (each for each in (sys.executable, shutil.which("python3", path="/usr/bin")))
    return {None: sys.executable, NOBODY: next((e for e in found if starts(e, NOBODY)), None)}


def _as(user: int | None) -> dict[str, Any]:
    """Arguments of subprocess.run that start a process as another user."""
    rights: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    return rights if user is None else {**rights, "user": user, "group": user, "extra_groups": []}


def attack(name: str, user: int | None, python: str | None, *more: str) -> Any:
    """What benchmarks.torture.victim says; its exit status if it says nothing."""
    if python is None:
        pytest.skip("an ordinary user may start no Python here")
    # pytest's own folders are closed to others
    with tempfile.TemporaryDirectory() as own:
        if user is not None:
            os.chown(own, user, user)
        command = [python, "-m", "benchmarks.torture.victim", name, own, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **_as(user))
    assert done.returncode <= 0, done.stderr
    return json.loads(done.stdout) if done.stdout else done.returncode


@pytest.mark.skipif(bool(MISSING), reason=f"this system lacks {', '.join(MISSING)}")
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_gets_nowhere(
    name: str, user: int | None, pythons: dict[int | None, str | None]
) -> None:
    found = attack(name, user, pythons[user])
    assert found == {"refused": True, "changed": []}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("processors and priorities", "bystander's priority"),
        ("a file's attributes", "extended attributes"),
        ("new files", "folder"),
    ],
)
def test_without_protections_it_would(name: str, changed: str) -> None:
    found = attack(name, None, sys.executable, "--unprotected")
    assert not found["refused"]
    assert changed in found["changed"]


def test_without_protections_a_pipe_kills_its_judge() -> None:
    found = attack("signals at input on a pipe", None, sys.executable, "--unprotected")
    assert found == -9

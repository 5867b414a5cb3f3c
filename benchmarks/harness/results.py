"""Files of results, and the commit that they belong to. Imports nothing heavy."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CODE = (
    ".",
    ":!benchmarks/results",
    ":!docs",
)  # what results may be written into while they are measured is not code
MEASURED = "ok"  # the status of a row with numbers; any other says why there are none


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Around reading what the user named: what is wrong with it ends the program without a
    traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that an interruption leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def checked_out() -> tuple[str | None, bool | None]:
    """(commit, whether code differs from it). A copy of the tree without .git may be told its
    COMMIT, and cannot know the other.
    """
    head, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *CODE)
    return head or os.environ.get("COMMIT"), None if status is None else bool(status)


def commit() -> str:
    """The commit in short, with a plus sign if code differs from it."""
    head, changed = checked_out()
    return head[:9] + ("+" if changed else "") if head else "unknown"


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parents[2]
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

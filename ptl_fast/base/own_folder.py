"""Whether the run's folder is still the one that this process has locked.

Somebody may delete or move it while the run works, or begin another run in its place: what is then
written would be half of a run, or get into the other one.
"""

import os
import weakref
from pathlib import Path
from typing import IO, Any


class _Held:
    lock: "weakref.ref[IO[Any]] | None" = None
    """The open lock file: whoever lets go of it releases the folder."""
    file: Path | None = None
    """Its name."""


_held = _Held()


def hold(file: Path, lock: IO[Any]) -> None:
    """Remember the lock of the folder that this process works in, for as long as it is open."""
    _held.file, _held.lock = file, weakref.ref(lock)


def is_lost() -> bool:
    """Whether this process holds a folder that is no longer where it was."""
    lock = _held.lock() if _held.lock is not None else None
    if lock is None or lock.closed or _held.file is None:
        return False
    try:
        return not os.path.samestat(os.fstat(lock.fileno()), _held.file.stat())
    except OSError:
        return True


def check(path: Path | None = None) -> None:
    """Raise ValueError if the folder is lost; of a ``path`` only if that lies in it."""
    if _held.file is None or not (path is None or _held.file.parent in path.parents):
        return
    if is_lost():
        raise ValueError(
            f"{_held.file.parent} was deleted or moved while the run was working in it; put it back"
            " and the same command continues, or begins anew without it"
        )

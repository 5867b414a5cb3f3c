"""Write files and folders atomically: after a crash or power failure they are complete or absent.

The order is that of an atomic write on POSIX file systems: write under a temporary name, fsync,
rename, fsync the parent folder. Functions here act for one process; ranks are in base/stored.py.
"""

import os
import shutil
from pathlib import Path


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file by atomic rename: a crash leaves the old content or the new.

    Creates the parent folders. A crash may also leave FILE.tmp, which the next write replaces.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    # without fsync, the rename may reach the disk before the content does
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """fsync a file, or a folder: its list of names, which a rename changes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_folder(folder: Path) -> Path:
    """The path (FOLDER.tmp) to fill before the rename; deletes what a crash has left there."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def publish(temporary: Path, folder: Path) -> None:
    """Flush a finished folder to disk, and rename it to ``folder``, replacing that.

    A crash between the deletion of the old folder and the rename leaves no folder, and the finished
    one under its temporary name; the caller then makes it again.
    """
    # the umask can only be read by setting it
    readable = os.umask(0)
    os.umask(readable)
    for path in [*temporary.rglob("*"), temporary]:
        # safetensors creates files that only their owner may read: apply the user's umask instead
        if path.is_file():
            path.chmod(0o666 & ~readable)
        sync(path)
    # rename() cannot replace a folder that has files
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync(folder.parent)


def nearest_folder(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    above = [path, *path.absolute().parents]
    return next(parent for parent in above if parent.exists())

"""Files and folders that appear whole or not at all, also when the power fails."""

import json
import os
import shutil
from pathlib import Path

WHOLE = "complete"
"""The file that says that its folder is whole: the sizes of all others, written last."""


def write_atomically(file: Path, content: bytes) -> None:
    """Write to a temporary file, flush it to disk, and rename: a crash leaves the old file or the
    new one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, folder: Path) -> None:
    """Flush a finished folder to disk and give it its name, in place of what has it."""
    readable = os.umask(0)
    os.umask(readable)
    for path in [*temporary.rglob("*"), temporary]:
        if path.is_file():  # safetensors writes files that nobody else may read
            path.chmod(0o666 & ~readable)
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync(folder.parent)


def mark_whole(folder: Path) -> None:
    """Say that a folder, which is written in place, has all its files."""
    write_atomically(folder / WHOLE, json.dumps(_sizes(folder)).encode())


def is_whole(folder: Path) -> bool:
    """Whether a folder was marked, and still has what it had then: a power failure may cut files
    off.
    """
    marker = folder / WHOLE
    return marker.is_file() and json.loads(marker.read_text()) == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != WHOLE)
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}

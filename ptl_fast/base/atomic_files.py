"""Files that appear whole or not at all."""

import os
from pathlib import Path


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

"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from ptl_fast.base import atomic_files
from ptl_fast.run.stored import JsonFile


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JsonFile(tmp_path / "a.json")
    file.write(1)

    def full_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        file.write(2)
    assert file.read() == 1

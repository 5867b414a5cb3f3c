"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from ptl_fast.base import atomic_files
from ptl_fast.base.stored import JsonFile


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JsonFile(tmp_path / "a.json")
    file.write(1)

    def full_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        file.write(2)
    assert file.read() == 1


def test_published_folder_takes_the_place_of_the_old_one_and_can_be_read(tmp_path: Path) -> None:
    for name in ("model", "model.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    secret = tmp_path / "model.tmp" / "model.tmp"
    secret.chmod(0o600)  # as safetensors writes
    plain = tmp_path / "plain"
    plain.touch()
    atomic_files.publish(tmp_path / "model.tmp", tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["model.tmp"]
    assert not (tmp_path / "model.tmp").exists()
    modes = [file.stat().st_mode & 0o777 for file in (tmp_path / "model" / "model.tmp", plain)]
    assert modes[0] == modes[1], "as any file that this process writes"

"""A folder that is deleted, moved, or another's now is lost; nothing is written there any more."""

import shutil
from pathlib import Path
from typing import IO

import pytest

from ptl_fast.base import own_folder
from ptl_fast.base.stored import FilledFolder, JsonFile


def held(folder: Path) -> IO[bytes]:
    folder.mkdir()
    lock = (folder / ".lock").open("wb")
    own_folder.hold(folder / ".lock", lock)
    return lock


def test_a_folder_is_lost_once_it_is_another_or_none(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder):
        JsonFile(folder / "a.json").write(1)
        folder.rename(tmp_path / "moved")
        for begins_another in (False, True):
            if begins_another:
                folder.mkdir()
                (folder / ".lock").touch()
            assert own_folder.is_lost()
            with pytest.raises(ValueError, match="was deleted or moved while the run was working"):
                JsonFile(folder / "round-01" / "b.json").write(2)
            with pytest.raises(ValueError, match="put it back and the same command continues"):
                FilledFolder(folder / "final").fill(lambda new: None)
        assert [file.name for file in folder.iterdir()] == [".lock"]
        JsonFile(tmp_path / "elsewhere.json").write(3)
        shutil.rmtree(folder)
        (tmp_path / "moved").rename(folder)
        JsonFile(folder / "b.json").write(2)


def test_a_folder_that_was_left_is_not_looked_at(tmp_path: Path) -> None:
    with held(tmp_path / "run"):
        pass
    shutil.rmtree(tmp_path / "run")
    assert not own_folder.is_lost()
    JsonFile(tmp_path / "run" / "a.json").write(1)

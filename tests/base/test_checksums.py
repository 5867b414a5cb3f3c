"""What is listed is right until it is replaced, and damage to it shows."""

import os
from pathlib import Path

import pytest

from ptl_fast.base import checksums
from support.damage import DAMAGES


def write(path: Path, content: bytes, *, killed: bool = False) -> None:
    checksums.announce(path, checksums.of_bytes(content))
    if not killed:
        path.write_bytes(content)
        checksums.confirm(path)


def test_every_damage_shows(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for damage in DAMAGES.values():
        write(file, b"content of a file")
        assert checksums.is_whole(file)
        assert not checksums.is_damaged(file)
        damage(file)
        assert not checksums.is_whole(file)
        assert checksums.is_damaged(file)


def test_a_kill_before_the_rename_leaves_the_content_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write(file, b"never", killed=True)
    assert not checksums.is_whole(file)
    assert not checksums.is_damaged(file)
    write(file, b"old")
    write(file, b"new", killed=True)
    assert checksums.is_whole(file)
    file.write_bytes(b"new")  # killed after the rename, before that is listed
    assert checksums.is_whole(file)
    checksums.confirm(file)
    file.write_bytes(b"old")
    assert checksums.is_damaged(file)


def test_deleted_by_the_run_is_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write(file, b"content")
    checksums.announce_deletion(file)
    file.unlink()
    assert not checksums.is_damaged(file)
    assert not checksums.is_whole(file)


def test_of_a_folder_the_wrong_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(os.urandom(100))
    (folder / "README.md").write_text("for people")
    checksums.announce(folder, checksums.of_path(folder))
    checksums.confirm(folder)
    (folder / "README.md").write_text("edited")
    (folder / "notes").write_text("added")
    assert checksums.is_whole(folder)
    DAMAGES["flip"](folder / "deep" / "weights")
    assert checksums.is_damaged(folder)
    assert checksums.difference(folder) == folder / "deep" / "weights"


def test_what_was_never_listed_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"an older version's")
    assert checksums.is_whole(tmp_path / "old")
    assert not checksums.is_damaged(tmp_path / "old")
    assert not checksums.is_whole(tmp_path / "none")


def test_a_line_that_a_crash_has_cut_off_does_not_hide_the_next(tmp_path: Path) -> None:
    with (tmp_path / checksums.LIST).open("w") as stream:
        stream.write('{"name": "file", "xx')
    write(tmp_path / "file", b"content")
    DAMAGES["flip"](tmp_path / "file")
    assert checksums.is_damaged(tmp_path / "file")


def test_a_pipe_in_place_of_the_list_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / checksums.LIST)
    (tmp_path / "file").write_bytes(b"x")
    assert checksums.is_whole(tmp_path / "file")
    with pytest.raises(OSError, match=checksums.LIST):
        write(tmp_path / "file", b"content")

"""What is listed is right until it is replaced, and damage to it shows."""

import os
import shutil
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


def test_what_another_run_wrote_is_not_this_run_s(tmp_path: Path) -> None:
    for name in ("own", "other"):
        checksums.hold(tmp_path / name, name)
        for place in ("round-01", "round-02"):
            write(tmp_path / name / place / "plan", name.encode())
    (tmp_path / "run").symlink_to("own")  # the folder may be moved
    checksums.hold(tmp_path / "run", "own")
    first, second = (tmp_path / "run" / name for name in ("round-01", "round-02"))
    assert checksums.is_whole(first / "plan")
    # a file without its list, a whole folder, and a folder of another round
    shutil.copy(tmp_path / "other" / "round-01" / "plan", first / "pruned")
    shutil.rmtree(second)
    shutil.copytree(tmp_path / "other" / "round-02", second)
    for file in (first / "pruned", second / "plan"):
        assert not checksums.is_whole(file)
        assert checksums.is_damaged(file)
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert checksums.is_damaged(second / "plan")
    # what takes its place counts
    write(second / "plan", b"made again")
    assert checksums.is_whole(second / "plan")
    checksums.hold(tmp_path, None)
    assert checksums.is_whole(first / "pruned")  # for those who only read


def test_a_folder_is_this_run_s_under_the_names_that_a_run_gives_it(tmp_path: Path) -> None:
    checksums.hold(tmp_path, "own")
    write(tmp_path / "round-01" / "plan", b"content")
    (tmp_path / "round-01").rename(tmp_path / "round-01.failed-1")
    assert checksums.is_whole(tmp_path / "round-01.failed-1" / "plan")
    assert checksums.runs_in(tmp_path / "round-01.failed-1") == {"own"}


def test_of_a_run_from_before_names_all_counts(tmp_path: Path) -> None:
    write(tmp_path / "plan", b"unnamed")
    (tmp_path / "pruned").write_bytes(b"unlisted")
    checksums.hold(tmp_path, "own")
    write(tmp_path / "later", b"named")
    assert all(checksums.is_whole(tmp_path / name) for name in ("plan", "pruned", "later"))


def test_a_list_that_is_damaged_makes_no_file_foreign(tmp_path: Path) -> None:
    checksums.hold(tmp_path, "own")
    for name in ("plan", "pruned"):
        write(tmp_path / name, b"content")
    DAMAGES["halve"](tmp_path / checksums.LIST)
    assert checksums.is_whole(tmp_path / "pruned")

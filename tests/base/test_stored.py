"""What a run keeps is read back as it was, is not computed again, and is done only if whole."""

from pathlib import Path

import pytest
import torch

from ptl_fast.base import checksums
from ptl_fast.base.stored import (
    FilledFolder,
    JsonFile,
    MarkedFolder,
    TensorFile,
    TwiceStored,
    remove,
    rename,
)


def test_once_computes_once(tmp_path: Path) -> None:
    calls: list[int] = []
    file = JsonFile(tmp_path / "a" / "b.json")
    for _ in range(2):
        assert file.once(lambda: calls.append(1) or {"x": 1}) == {"x": 1}
    assert calls == [1]


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"round": 1, "kept')
    with pytest.raises(
        ValueError, match=r"plan.json is damaged .* delete it, or begin anew with --overwrite"
    ):
        JsonFile(tmp_path / "plan.json").read()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '"width"', "{}", '{"round": 1}', "\x80"]
)
def test_an_object_that_lacks_what_is_needed_of_it_is_made_again(
    tmp_path: Path, content: str
) -> None:
    """Also where no list of checksums says that it was another one."""
    file = JsonFile(tmp_path / "record.json", ("round", "width"))
    file.path.write_bytes(content.encode("latin1"))
    assert not file.exists()
    assert file.is_damaged()
    with pytest.raises(ValueError, match=r"record.json is damaged \(.*\); delete it"):
        file.read()
    assert file.once(lambda: {"round": 1, "width": 2}) == {"round": 1, "width": 2}
    assert file.read() == file.found() == {"round": 1, "width": 2}


def test_the_copy_stands_for_a_file_that_is_another_object(tmp_path: Path) -> None:
    file = TwiceStored(tmp_path / "state.json", ("config",))
    file.write({"config": {}})
    (tmp_path / "checksums.list").unlink()
    file.path.write_text("{}")
    assert file.read() == {"config": {}}


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "statistics.safetensors")
    assert not file.exists()
    scores = torch.rand(3, 5).T  # not contiguous
    file.write({"scores": scores})
    assert file.exists()
    assert torch.equal(file.read()["scores"], scores)


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "file").touch()
    remove(tmp_path / "folder", tmp_path / "file", tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_truncated_tensors_are_not_whole(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "part.safetensors")
    assert not file.holds("rows", [3, 5])
    file.write({"rows": torch.rand(3, 5)})
    assert file.holds("rows", [3, 5])
    assert not file.holds("rows", [4, 5])
    assert not file.holds("columns", [3, 5])
    content = file.path.read_bytes()
    for size in (0, 20, len(content) - 1):
        file.path.write_bytes(content[:size])
        assert not file.holds("rows", [3, 5]), size


def test_folder_is_whole_only_as_long_as_it_has_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(b"12345")
    folder = MarkedFolder(tmp_path)
    assert not folder.exists()
    folder.mark()
    assert folder.exists()
    (tmp_path / "deep" / "weights").write_bytes(b"12346")  # a flipped bit
    assert not folder.exists()
    # as an older version of this package wrote it
    (tmp_path / "complete").write_text('{"deep/weights": 5}')
    assert folder.exists()
    (tmp_path / "deep" / "weights").write_bytes(b"123")  # cut off by a power failure
    assert not folder.exists()
    (tmp_path / "deep" / "weights").write_bytes(b"12345")
    (tmp_path / "other").touch()
    assert not folder.exists()


def test_a_folder_is_replaced_by_one_that_is_whole(tmp_path: Path) -> None:
    folder = MarkedFolder(tmp_path / "cpt")
    (folder.path / "checkpoint-3").mkdir(parents=True)

    def killed(new: Path) -> None:
        (new / "weights").write_bytes(b"1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.fill(killed)
    assert [file.name for file in folder.path.iterdir()] == ["checkpoint-3"]
    folder.fill(lambda new: (new / "weights").write_bytes(b"12") and None)
    assert folder.exists()
    assert {file.name for file in folder.path.iterdir()} == {"weights", "complete"}


def test_a_marked_folder_of_another_run_is_not_whole(tmp_path: Path) -> None:
    checksums.hold(tmp_path, "other")
    folder = MarkedFolder(tmp_path / "checkpoint-1")
    folder.fill(lambda path: (path / "weights").write_bytes(b"new") and None)
    assert folder.is_whole()
    checksums.hold(tmp_path, "own")
    assert not folder.is_whole()
    (folder.path / "complete").write_text('{"weights": 3}')  # an older version's
    assert folder.is_whole()


def test_renaming_again_after_a_crash_completes_it(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    for _ in range(2):
        rename(tmp_path / "old", tmp_path / "new")
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["old"]


def test_a_folder_with_a_fault_does_not_appear(tmp_path: Path) -> None:
    """It can be looked at under its temporary name, until the next attempt."""
    folder = FilledFolder(tmp_path / "model")
    folder.fill(lambda new: (new / "weights").write_bytes(b"1") and None)

    def faulty(new: Path) -> None:
        (new / "weights").write_bytes(b"2")
        raise ValueError("weights has other values")

    with pytest.raises(ValueError, match="weights has other values"):
        folder.fill(faulty)
    assert (folder.path / "weights").read_bytes() == b"1"
    assert (tmp_path / "model.tmp" / "weights").read_bytes() == b"2"
    folder.fill(lambda new: (new / "weights").write_bytes(b"3") and None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checksums.list", "model"]
    assert not (tmp_path / "model.tmp").exists()
    assert (folder.path / "weights").read_bytes() == b"3"

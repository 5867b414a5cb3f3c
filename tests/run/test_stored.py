"""What a run keeps is read back as it was, and is not computed again."""

from pathlib import Path

import pytest
import torch

from ptl_fast.run.stored import JsonFile, TensorFile, remove


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

"""Errors of writing name the place and the space; others pass as they are."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from torch import nn

from ptl_fast.base.disk import check_space, model_bytes, storing
from ptl_fast.base.errors import StorageFailed


class Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_errors_of_writing_name_the_file_and_the_space(tmp_path: Path, error: Exception) -> None:
    said = r"model cannot be written: .* MiB are free"
    with pytest.raises(StorageFailed, match=said), storing(tmp_path / "model"):
        raise error


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), storing(tmp_path / "model"):
        raise RuntimeError("size mismatch")


def test_too_little_space_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**20))
    check_space(tmp_path / "a" / "b", 2**20)
    with pytest.raises(StorageFailed, match=r"b needs about 2\.0 MiB, and 1\.0 MiB are free"):
        check_space(tmp_path / "a" / "b", 2**21)


def test_weights_that_are_tied_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert model_bytes(model) == 64  # type: ignore[arg-type]

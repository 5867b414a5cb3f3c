"""What is copied out of a streamed round is compared and tried before it is the result."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptl_fast import compress
from ptl_fast.run import save_streamed
from support.runs import RUN

ONE = {**RUN, "rounds": 1, "recovery": "none", "eval_tasks": "none", "stream": True}


def test_a_changed_copy_is_no_result_and_the_same_command_mends_it(
    tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def damaged(source: Path, target: Path) -> None:
        copy(source, target)
        if target.name.startswith("model-00002"):
            tensors = load_file(target)
            tensors["model.layers.1.mlp.up_proj.weight"][0] += 1
            save_file(tensors, target)

    with monkeypatch.context() as patch:
        patch.setattr(save_streamed.shutil, "copyfile", damaged)
        with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight has other values"):
            compress(**{**tiny_run, **ONE}, output=tmp_path)
    assert not (tmp_path / "final").exists()
    compress(**{**tiny_run, **ONE}, output=tmp_path)
    assert (tmp_path / "final" / "config.json").exists()


@pytest.mark.parametrize(
    ("factor", "told"),
    [(float("inf"), "an activation is NaN or infinite"), (2.0, "its hidden states overflow")],
)
def test_what_does_not_compute_is_told(
    factor: float,
    told: str,
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = save_streamed._states

    def larger(context: Any, path: Path, dtype: torch.dtype) -> torch.Tensor:
        # beyond float16's largest number, and within float32's
        return states(context, path, dtype).to(dtype) * (factor * 1e5)

    monkeypatch.setattr(save_streamed, "_states", larger)
    with pytest.raises(ValueError, match=told):
        compress(**{**tiny_run, **ONE, "save_dtype": "float16"}, output=tmp_path)
    assert not (tmp_path / "round-01" / "model").exists()

"""A merged model computes what the adapter beside its model computes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptl_fast.model.adapters import check_adapter, merge_adapter_
from ptl_fast.model.checkpoint import Adapter
from support.stored_models import write_adapter


class Two(nn.Module):
    """A linear layer, an embedding, and a layer stored as GPT-2 stores them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.table = nn.Embedding(9, 5)


def adapter(folder: Path, weights: dict[str, Tensor], **config: Any) -> Adapter:
    write_adapter(folder, {f"base_model.model.{name}": each for name, each in weights.items()})
    return Adapter(name=str(folder), revision=None, config={"peft_type": "LORA", **config})


A, B, X = torch.randn(2, 6), torch.randn(4, 2), torch.randn(7, 6)
MATRICES = {"linear.lora_A.weight": A, "linear.lora_B.weight": B}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 6}, 3.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(2)),
        ({"lora_alpha": 6, "alpha_pattern": {"linear": 1}}, 0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"near": 1}}, 3.0),
    ],
)
def test_a_linear_layer_computes_the_sum(config: dict, scale: float, tmp_path: Path) -> None:
    model = Two()
    expected = model.linear(X) + scale * X @ A.T @ B.T
    merge_adapter_(model, adapter(tmp_path, MATRICES, **config))
    torch.testing.assert_close(model.linear(X), expected)


def test_dora_sets_the_norm_of_each_output(tmp_path: Path) -> None:
    model, magnitude = Two(), torch.rand(4)
    changed = model.linear.weight + 3 * B @ A
    rows = magnitude / changed.norm(dim=1)
    weights = {**MATRICES, "linear.lora_magnitude_vector": magnitude}
    merge_adapter_(model, adapter(tmp_path, weights, lora_alpha=6, use_dora=True))
    torch.testing.assert_close(model.linear.weight, rows[:, None] * changed)


def test_an_embedding_a_bias_and_a_part_that_was_trained_whole(tmp_path: Path) -> None:
    model = Two()
    left, right, bias = torch.randn(5, 3), torch.randn(3, 9), torch.randn(4)
    expected = model.table.weight + 2 * (left @ right).T
    weights = {
        "table.lora_embedding_A": right,
        "table.lora_embedding_B": left,
        "linear.base_layer.bias": bias,
        "linear.weight": torch.ones(4, 6),
    }
    merge_adapter_(model, adapter(tmp_path, weights, lora_alpha=6))
    torch.testing.assert_close(model.table.weight, expected)
    assert torch.equal(model.linear.bias, bias)
    assert torch.equal(model.linear.weight, torch.ones(4, 6))


def test_layers_stored_the_other_way_round(tmp_path: Path) -> None:
    model = Two()
    model.linear.weight = nn.Parameter(model.linear.weight.T.contiguous())
    expected = model.linear.weight + 3 * (B @ A).T
    merge_adapter_(model, adapter(tmp_path, MATRICES, lora_alpha=6, fan_in_fan_out=True))
    torch.testing.assert_close(model.linear.weight, expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"other.lora_A.weight": A, "other.lora_B.weight": B}, r"other\.weight .4, 6., which the"),
        ({"linear.lora_A.weight": torch.ones(2, 5), "linear.lora_B.weight": B}, "another shape"),
        ({"linear.lora_A.weight": A}, "only one of the two matrices for linear"),
    ],
)
def test_what_does_not_fit_is_named(
    weights: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        merge_adapter_(Two(), adapter(tmp_path, weights))


def test_other_kinds_and_missing_files_are_refused(tmp_path: Path) -> None:
    check_adapter(adapter(tmp_path, MATRICES))
    with pytest.raises(ValueError, match="kind IA3, which is not merged; merge it with PEFT"):
        check_adapter(adapter(tmp_path, MATRICES, peft_type="IA3"))
    file = tmp_path / "adapter_model.safetensors"
    torch.save({"a": A}, tmp_path / "adapter_model.bin")
    file.unlink()
    check_adapter(Adapter(name=str(tmp_path), revision=None, config={"peft_type": "LORA"}))
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors"):
        check_adapter(Adapter(name=str(tmp_path), revision=None, config={"peft_type": "LORA"}))

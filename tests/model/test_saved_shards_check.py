"""A saved model that is not its shards, or not of its config, is named by the tensor or field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptl_fast.model import loading
from ptl_fast.model.saved_shards_check import difference
from support.models import make_model

UP, Q = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    saved, shards = tmp_path / "saved", tmp_path / "shards"
    model = make_model("llama")
    model.save_pretrained(saved)
    model.save_pretrained(shards, max_shard_size="40KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    return saved, shards


def found(folders: tuple[Path, Path], dtype: torch.dtype = torch.float32) -> str | None:
    saved, shards = folders
    return difference(saved, shards, loading.load_config(str(shards)), dtype)


def test_a_copy_is_its_shards(folders: tuple[Path, Path]) -> None:
    assert found(folders) is None
    assert found(folders, torch.bfloat16) is not None


def changed_bit(tensors: dict[str, Any]) -> None:
    tensors[UP].view(-1).view(torch.int32)[0] ^= 1


def another_shape(tensors: dict[str, Any]) -> None:
    tensors[UP] = tensors[UP][:-1].contiguous()


def another_type(tensors: dict[str, Any]) -> None:
    tensors[UP] = tensors[UP].bfloat16()


def lost(tensors: dict[str, Any]) -> None:
    del tensors[Q]


def one_more(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (changed_bit, f"{UP} has other values"),
        (another_shape, f"{UP} has another shape than the config says"),
        (another_type, f"{UP} is saved as torch.bfloat16, and should be torch.float32"),
        (lost, f"{Q} is missing"),
        (one_more, "model.layers.0.self_attn.q_proj.bias has no place in a model of this config"),
    ],
)
def test_a_fault_in_the_file_is_named(
    folders: tuple[Path, Path], fault: Callable[[dict[str, Any]], None], told: str
) -> None:
    file = folders[0] / "model.safetensors"
    tensors = load_file(file)
    fault(tensors)
    save_file(tensors, file)
    assert found(folders) == told


def test_a_tensor_that_only_one_has_is_named(folders: tuple[Path, Path]) -> None:
    file = sorted(folders[1].glob("*.safetensors"))[0]
    tensors = load_file(file)
    save_file({**tensors, "lost.weight": torch.zeros(2)}, file)
    assert found(folders) == "lost.weight is only in the pruned model"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("rms_norm_eps", 0.5, "config.json has rms_norm_eps 0.5, and was made with 1e-06"),
        ("tie_word_embeddings", True, "its config says tie_word_embeddings, and its head has"),
        ("hidden_act", "relu", "config.json has hidden_act relu, and was made with silu"),
        ("model_type", "no such", "it cannot be loaded: "),
    ],
)
def test_a_fault_in_the_config_is_named(
    folders: tuple[Path, Path], name: str, value: Any, told: str
) -> None:
    file = folders[0] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    assert told in (found(folders) or "")

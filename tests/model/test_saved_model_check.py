"""A saved model that is not the one in memory is found, and what differs is named."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import deepspeed

from ptl_fast.model import precision
from ptl_fast.model.families import find_family
from ptl_fast.model.saved_model_check import difference, structure_difference
from ptl_fast.pruning.compact import compact_
from support.mixtures import make_mixture
from support.models import FAMILIES, make_model
from support.plans import layer_plan, random_plan

DOWN = "model.layers.2.mlp.down_proj.weight"


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    precision.round_(model, dtype)
    with precision.stored_as(model, dtype):
        model.save_pretrained(folder)
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_compacted_model_is_the_one_that_is_rebuilt(
    family: str, dtype: torch.dtype, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model(family)
    compact_(model, find_family(model), random_plan(model))
    layers = dataclasses.replace(layer_plan([1, 3]), width=model.config.intermediate_size)
    compact_(model, find_family(model), layers)
    assert structure_difference(model) is None
    folder = save(model, tmp_path, dtype)
    assert difference(folder, model, dtype, input_ids) is None
    # the comparison leaves the model as it was
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert difference(folder, model, dtype, input_ids) is None


FAULTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "shifted-row": (
        lambda tensors: tensors.update({DOWN: tensors[DOWN].roll(1, 0)}),
        f"{DOWN} has other values",
    ),
    "last-bit": (
        lambda tensors: tensors[DOWN][3, 5].mul_(1 + 2**-23),
        f"{DOWN} has other values",
    ),
    "wrong-type": (
        lambda tensors: tensors.update({DOWN: tensors[DOWN].bfloat16()}),
        f"{DOWN} is saved as bfloat16, and should be float32",
    ),
    "wrong-shape": (
        lambda tensors: tensors.update({DOWN: tensors[DOWN][:, 1:].contiguous()}),
        rf"{DOWN} is saved with shape \[32, 47\], and has \[32, 48\]",
    ),
    "missing": (lambda tensors: tensors.pop(DOWN), f"{DOWN} is missing"),
    "dropped-bias": (
        lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.bias"),
        "model.layers.0.self_attn.q_proj.bias is missing",
    ),
    "extra": (
        lambda tensors: tensors.update({"model.layers.2.mlp.down_proj.bias": torch.zeros(32)}),
        "model.layers.2.mlp.down_proj.bias has no place in a model of this config",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_weights_is_named(
    fault: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model("qwen2")
    folder = save(model, tmp_path)
    edit, named = FAULTS[fault]
    edit_weights(folder, edit)
    found = difference(folder, model, torch.float32, input_ids)
    with pytest.raises(AssertionError, match=named):
        assert found is None, found


EXPERTS = "model.layers.2.block_sparse_moe"
# as config.json and the files of a mixture could be wrong, one thing at a time
MIXTURE_FAULTS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "experts-swapped-with-their-rows": (
        "mixtral",
        lambda tensors: [swap(tensors, name) for name in ("w1", "w2", "w3", "gate")],
        "model.layers.2.mlp.* has other values",
    ),
    "router-row-missing": (
        "mixtral",
        lambda tensors: tensors.update(
            {f"{EXPERTS}.gate.weight": tensors[f"{EXPERTS}.gate.weight"][1:].contiguous()}
        ),
        "model.layers.2.mlp.gate.weight has another shape",
    ),
    "expert-missing": (
        "mixtral",
        lambda tensors: tensors.pop(f"{EXPERTS}.experts.3.w2.weight"),
        "model.layers.2.mlp.experts.down_proj has another shape",
    ),
    "dropped-bias": (
        "gpt_oss",
        lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj_bias"),
        "model.layers.1.mlp.experts.down_proj_bias is missing",
    ),
    "shifted-correction": (
        "deepseek_v3",
        lambda tensors: tensors["model.layers.1.mlp.gate.e_score_correction_bias"].add_(1e-3),
        "model.layers.1.mlp.gate.e_score_correction_bias has other values",
    ),
}


def swap(tensors: dict[str, torch.Tensor], name: str) -> None:
    """Exchange the experts 0 and 1 of a layer, or their rows of its router."""
    if name == "gate":
        rows = tensors[f"{EXPERTS}.gate.weight"]
        rows[:2] = rows[[1, 0]].clone()
        return
    first, second = (f"{EXPERTS}.experts.{expert}.{name}.weight" for expert in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]


@pytest.mark.parametrize("fault", MIXTURE_FAULTS)
def test_a_fault_in_a_mixtures_weights_is_named(
    fault: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    """Also one that changes no logit."""
    model_type, edit, named = MIXTURE_FAULTS[fault]
    model = make_mixture(model_type)
    folder = save(model, tmp_path)
    edit_weights(folder, edit)
    found = difference(folder, model, torch.float32, input_ids)
    with pytest.raises(AssertionError, match=named):
        assert found is None, found


def with_config(
    model: PreTrainedModel, values: dict[str, Any], input_ids: torch.Tensor, tmp_path: Path
) -> str:
    """What the check finds of a model whose saved config says these values; empty for nothing."""
    folder = save(model, tmp_path)
    edit_config(folder, **values)
    return difference(folder, model, torch.float32, input_ids) or ""


@pytest.mark.parametrize(
    ("model_type", "values", "named"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"model.layers.\d.mlp.* is missing"),
        ("deepseek_v3", {"first_k_dense_replace": 2}, r"model.layers.1.mlp.* is missing"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok|computes something else"),
        ("deepseek_v3", {"topk_group": 2}, "topk_group|computes something else"),
        ("qwen3_moe", {"norm_topk_prob": True}, "norm_topk_prob True, and was measured with False"),
        ("mixtral", {"num_local_experts": 3}, "another shape than the config says"),
    ],
)
def test_a_fault_in_a_mixtures_config_is_named(
    model_type: str, values: dict[str, Any], named: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    assert re.search(named, with_config(make_mixture(model_type), values, input_ids, tmp_path))


@pytest.mark.parametrize(
    ("family", "values", "named"),
    [
        pytest.param(
            "gemma2",
            {"layer_types": ["full_attention", "sliding_attention"] + 3 * ["full_attention"]},
            r"config.json has layer_types .*, and was measured with \['sliding_attention'",
            id="per-layer-list",
        ),
        pytest.param(
            "mistral",
            {"sliding_window": 9},
            "config.json has sliding_window 9, and was measured with 8",
            id="window",
        ),
        pytest.param(
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "model.layers.0 computes something else",
            id="positions",
        ),
        pytest.param(
            "llama",
            {"num_hidden_layers": 4},
            r"model.layers.4.input_layernorm.weight has no place in a model of this config",
            id="fewer-layers",
        ),
        pytest.param(
            "llama", {"num_key_value_heads": 4}, "another shape than the config says", id="heads"
        ),
        pytest.param(
            "llama",
            {"tie_word_embeddings": True},
            "its config says tie_word_embeddings, and its head has weights of its own",
            id="tied",
        ),
        pytest.param("llama", {"model_type": "lama"}, "it cannot be loaded", id="unknown-type"),
    ],
)
def test_a_fault_in_the_config_is_named(
    family: str, values: dict[str, Any], named: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    assert re.search(named, with_config(make_model(family), values, input_ids, tmp_path))


def test_layers_that_kept_their_old_numbers_are_found(
    llama: PreTrainedModel, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    """Without a cache, they compute what they should."""
    compact_(llama, find_family(llama), layer_plan([1]))
    llama.model.layers[3].self_attn.layer_idx = 4
    named = "model.layers.3.self_attn has layer_idx 3, and was measured with 4"
    assert structure_difference(llama) == named
    assert difference(save(llama, tmp_path), llama, torch.float32, input_ids) == named


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"mlp_bias": True}, "model.layers.0.mlp.down_proj.bias is missing", id="bias"),
        pytest.param({"num_hidden_layers": 4}, "model.layers.4.input", id="layers"),
        pytest.param({"intermediate_size": 40}, r"has shape \[48, 32\], .* \[40", id="width"),
    ],
)
def test_a_config_that_does_not_belong_to_the_model_is_found_without_weights(
    llama: PreTrainedModel, change: dict[str, Any], named: str
) -> None:
    llama.config.update(change)
    with pytest.raises(AssertionError, match=named):
        assert structure_difference(llama) is None, structure_difference(llama)


def test_what_the_config_does_not_know_is_found(
    llama: PreTrainedModel, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    """A layer in memory that computes something which no config asks for."""
    llama.model.layers[2].mlp.register_forward_hook(lambda module, inputs, output: output * 1.01)
    found = difference(save(llama, tmp_path), llama, torch.float32, input_ids)
    assert found == "model.layers.2 computes something else"


def test_the_saved_model_is_whole_after_a_training_with_zero3(
    llama: PreTrainedModel, input_ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one rank loads it, and spreading it over the ranks would wait for the others."""

    class Zero3:
        def is_zero3(self) -> bool:
            return True

    settings, loads = Zero3(), AutoModelForCausalLM.from_pretrained
    deepspeed.set_hf_deepspeed_config(settings)
    spread: list[bool] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        spread.append(deepspeed.is_deepspeed_zero3_enabled())
        return loads(*arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    try:
        assert difference(save(llama, tmp_path), llama, torch.float32, input_ids) is None
        assert deepspeed.is_deepspeed_zero3_enabled(), "the next training has its settings"
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert spread == [False]

"""Rows that transformers' grouped product refuses are known without running it."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ptl_fast.model import expert_rows
from ptl_fast.model.layers import on_meta
from support.mixtures import EXPERT_WIDTH, make_mixture
from support.models import HIDDEN, make_model


def runs(model: Any, input_ids: torch.Tensor) -> bool:
    try:
        model(input_ids=input_ids)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [6, 12, 20, 24])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_run_if_and_only_if_their_rows_are_long_enough(
    family: str, width: int, dtype: torch.dtype, input_ids: torch.Tensor
) -> None:
    config = make_mixture(family, intermediate_size=width, num_hidden_layers=1).config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    ((hidden, own),) = expert_rows.sizes(on_meta(config))
    assert (hidden, own) == (HIDDEN, width)
    found = [expert_rows.why_not(each, "rows", dtype) for each in (hidden, own)]
    assert runs(model, input_ids) == (found == [None, None])
    helps = expert_rows.remedy(model, dtype)
    assert (helps is None) == (found[1] is None)
    if helps is not None:
        assert f"--width-multiple that is a multiple of {16 // dtype.itemsize}" in helps


def test_a_hidden_size_that_does_not_fit_is_named() -> None:
    model = on_meta(make_mixture("mixtral", hidden_size=36, num_hidden_layers=1).config)
    assert expert_rows.remedy(model, torch.bfloat16) == "its hidden size 36 is no multiple of 8"
    assert expert_rows.remedy(model, torch.float32) is None
    told = expert_rows.why_not(36, "its hidden states are", torch.bfloat16)
    assert told is not None
    assert "36 wide, 72 bytes a row in bfloat16" in told


def test_other_models_are_not_concerned() -> None:
    """Llama 4's experts are one batched product; other FFNs are linear layers."""
    for model in (make_mixture("llama4_text", intermediate_size=6), make_model("llama")):
        assert expert_rows.sizes(model) == set()
    assert expert_rows.sizes(make_mixture("qwen3_moe")) == {(HIDDEN, EXPERT_WIDTH)}
    eager = make_mixture("qwen3_moe")
    eager.set_experts_implementation("eager")
    assert expert_rows.sizes(eager) == set()

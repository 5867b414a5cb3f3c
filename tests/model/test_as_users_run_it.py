"""A saved model that does not run in the type of its file is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.model import precision
from ptl_fast.model.as_users_run_it import why_not
from support.mixtures import make_mixture
from support.models import make_model


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> Path:
    precision.round_(model, dtype)
    with precision.stored_as(model, dtype):
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [make_mixture, make_model], ids=["mixture", "dense"])
def test_a_model_that_runs_in_its_type_is_near_what_was_measured(
    make: Any, dtype: torch.dtype, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make("gpt_oss" if make is make_mixture else "qwen3")
    assert why_not(save(model, tmp_path, dtype), model, dtype, input_ids) is None


def test_experts_whose_rows_its_type_does_not_take_are_found(
    input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_mixture("gpt_oss", intermediate_size=12)
    model(input_ids=input_ids)  # as it was measured, it runs
    found = why_not(save(model, tmp_path, torch.bfloat16), model, torch.bfloat16, input_ids)
    assert found is not None
    assert found.startswith("it does not run in bfloat16: strides should be multiple of 16 bytes")
    assert found.endswith("give a --width-multiple that is a multiple of 8")


def test_numbers_beyond_float16_are_found(input_ids: torch.Tensor, tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e5)
        model.get_output_embeddings().weight.clamp_(-6e4, 6e4)
    found = why_not(save(model, tmp_path, torch.float16), model, torch.float16, input_ids)
    assert found == "its logits overflow in float16; give --save-dtype float32, or bfloat16"


def test_a_type_in_which_a_model_computes_something_else_is_found(
    input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model("llama")
    folder = save(model, tmp_path, torch.bfloat16)
    model.model.layers[2].mlp.register_forward_hook(lambda module, inputs, output: output * 3)
    found = why_not(folder, model, torch.bfloat16, input_ids)
    assert found is not None
    assert found.startswith("in bfloat16 it computes something else: the median token's logits")

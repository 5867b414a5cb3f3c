"""Weights are saved in the original's type, and those in memory are rounded to what is saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ptl_fast.config.model import ModelSettings
from ptl_fast.model import precision
from support.models import make_model


@pytest.mark.parametrize(
    ("said", "held", "expected"),
    [
        pytest.param("bfloat16", torch.bfloat16, torch.bfloat16, id="bf16"),
        pytest.param("float32", torch.float32, torch.float32, id="fp32"),
        pytest.param("float16", torch.float16, torch.float16, id="fp16"),
        pytest.param(None, torch.bfloat16, torch.bfloat16, id="config-says-nothing"),
        pytest.param("float32", torch.bfloat16, torch.bfloat16, id="config-says-more"),
        pytest.param("bfloat16", torch.float32, torch.bfloat16, id="config-says-less"),
        pytest.param(None, None, torch.float32, id="nobody-says"),
        pytest.param("bfloat16", None, torch.bfloat16, id="no-files"),
    ],
)
def test_the_originals_type_is_the_configs_but_no_wider_than_its_files(
    said: str | None, held: torch.dtype | None, expected: torch.dtype, tmp_path: Path
) -> None:
    config = AutoConfig.for_model("llama")
    config.dtype = said
    if held is not None:
        # a small tensor of another type, such as a router's bias, does not decide
        tensors = {"a": torch.ones(9, 7, dtype=held), "b": torch.ones(3, dtype=torch.float32)}
        save_file(tensors, tmp_path / "model.safetensors")
    folder = tmp_path if held is not None else None
    assert precision.original_dtype(folder, config) == expected


@pytest.mark.parametrize(
    ("original", "dtype", "save_dtype", "expected"),
    [
        pytest.param("bfloat16", "auto", "auto", torch.bfloat16, id="originals"),
        pytest.param("bfloat16", "float32", "auto", torch.bfloat16, id="computed-wider"),
        pytest.param("float32", "bfloat16", "auto", torch.bfloat16, id="computed-narrower"),
        pytest.param("bfloat16", "float16", "auto", torch.float16, id="computed-otherwise"),
        pytest.param("bfloat16", "auto", "float32", torch.float32, id="asked-for"),
        pytest.param("bfloat16", "auto", "computed", torch.float32, id="as-computed"),
        pytest.param("float32", "bfloat16", "computed", torch.bfloat16, id="as-computed-narrower"),
    ],
)
def test_weights_are_saved_as_asked_or_in_the_narrower_type(
    original: str, dtype: str, save_dtype: str, expected: torch.dtype
) -> None:
    config = AutoConfig.for_model("llama", dtype=original)
    settings = ModelSettings(dtype=dtype, save_dtype=save_dtype)  # type: ignore[arg-type]
    assert precision.saved_dtype(settings, "cpu", None, config) == expected


def test_a_gpu_computes_in_the_originals_type() -> None:
    config = AutoConfig.for_model("llama", dtype="bfloat16")
    for save_dtype in ("auto", "computed"):
        settings = ModelSettings(save_dtype=save_dtype)  # type: ignore[arg-type]
        assert precision.saved_dtype(settings, "cuda:0", None, config) == torch.bfloat16


def test_a_round_is_computed_in_the_originals_type_whatever_it_was_saved_in() -> None:
    config = AutoConfig.for_model("llama", dtype="bfloat16")
    settings = ModelSettings(save_dtype="float32")
    assert precision.as_computed(settings, "cuda:0", config).dtype == "bfloat16"
    assert precision.as_computed(settings, "cpu", config).dtype == "auto"
    asked = ModelSettings(dtype="float16")
    assert precision.as_computed(asked, "cuda:0", config).dtype == "float16"


def test_a_saved_model_is_the_one_in_memory_bit_for_bit(tmp_path: Path) -> None:
    """Tied weights stay tied, and the model goes on computing in the type it had."""
    model = make_model("llama", tie_word_embeddings=True)
    model.config.dtype = "float32"
    unrounded = {name: each.clone() for name, each in model.state_dict().items()}
    precision.round_(model, torch.bfloat16)
    rounded = {name: each.clone() for name, each in model.state_dict().items()}
    assert all(torch.equal(rounded[name], unrounded[name].bfloat16()) for name in rounded)
    assert not torch.equal(rounded["lm_head.weight"], unrounded["lm_head.weight"])
    with precision.stored_as(model, torch.bfloat16):
        model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert {each.dtype for each in held.values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert model.config.dtype == "float32"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, each in model.state_dict().items():
        assert each.dtype == torch.float32
        assert torch.equal(each, rounded[name])
        assert torch.equal(each, loaded.state_dict()[name])


def test_a_float32_model_is_left_alone(llama: PreTrainedModel) -> None:
    before = [parameter.data_ptr() for parameter in llama.parameters()]
    precision.round_(llama, torch.float32)
    with precision.stored_as(llama, torch.float32):
        assert [parameter.data_ptr() for parameter in llama.parameters()] == before
    assert [parameter.data_ptr() for parameter in llama.parameters()] == before


def test_what_transformers_keeps_in_float32_is_kept_so() -> None:
    """gpt-oss names parameters; the type is that of a model loaded in the narrower type."""
    model = make_model("llama")
    type(model)._keep_in_fp32_modules_strict = {"input_layernorm"}
    try:
        types = precision.stored_types(model, torch.bfloat16)
    finally:
        type(model)._keep_in_fp32_modules_strict = None
    kept = {name for name, dtype in types.items() if dtype == torch.float32}
    assert kept == {f"model.layers.{index}.input_layernorm.weight" for index in range(5)}
    assert set(types.values()) == {torch.float32, torch.bfloat16}

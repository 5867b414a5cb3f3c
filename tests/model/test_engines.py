"""What engines take for granted is held against what a config says of its layers and experts."""

import re

import pytest
from transformers import AutoConfig, PretrainedConfig

from ptl_fast.model import engines
from ptl_fast.model.layers import follow_layers


def config(model_type: str, num_layers: int = 12) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, num_hidden_layers=num_layers)


def without(model_type: str, *gone: int) -> PretrainedConfig:
    smaller = config(model_type)
    follow_layers(smaller, [layer for layer in range(12) if layer not in gone])
    return smaller


@pytest.mark.parametrize("model_type", engines.ASSUMPTIONS)
def test_llama_cpp_reads_every_original_right_and_none_without_its_first_layer(
    model_type: str,
) -> None:
    assert not engines.misread_by(config(model_type), "llama.cpp")
    assert engines.may_misread(config(model_type))
    found = engines.misread_by(without(model_type, 0), "llama.cpp")
    assert found
    assert all(line.startswith("llama.cpp cannot represent this model") for line in found)


@pytest.mark.parametrize(
    ("model_type", "gone"),
    [("gemma2", (2, 3)), ("cohere2", (8, 9, 10, 11)), ("smollm3", (0, 1, 2, 3))],
)
def test_a_whole_period_may_go(model_type: str, gone: tuple[int, ...]) -> None:
    assert not engines.misread_by(without(model_type, *gone), "llama.cpp")


def test_the_first_wrong_layer_is_named() -> None:
    line, *others = engines.misread_by(without("gemma2", 3))
    assert line == (
        "llama.cpp cannot represent this model: it assumes that every second layer, and no other,"
        " attends to everything, and here layer 3 is different."
    )
    assert [other.split()[0] for other in others] == ["SGLang", "CTranslate2"]


def test_an_engine_that_misreads_the_original_is_told_of_it() -> None:
    (line,) = engines.misread_by(config("gemma2"))
    assert "CTranslate2" in line
    assert "also in the original" in line


def test_families_without_an_entry_and_models_without_a_window_are_read_right() -> None:
    assert not engines.misread_by(config("llama"))
    assert not engines.may_misread(config("llama"))
    no_window = without("gemma2", 0)
    no_window.sliding_window = None
    assert not engines.misread_by(no_window)


@pytest.mark.parametrize(
    ("model_type", "right", "wrong", "named"),
    [
        ("qwen3_moe", {"norm_topk_prob": True}, {"mlp_only_layers": [1]}, "layer has experts"),
        ("qwen2_moe", {}, {"decoder_sparse_step": 2}, "every layer has experts"),
        ("qwen3_moe", {"norm_topk_prob": True}, {"norm_topk_prob": False}, "here they are not"),
        ("olmoe", {}, {"norm_topk_prob": True}, "here they are scaled to a sum of 1"),
        ("deepseek_v3", {"scoring_func": "sigmoid"}, {"scoring_func": None}, "are a softmax"),
        (
            "llama4_text",
            {"interleave_moe_layer_step": 2, "moe_layers": [1, 3]},
            {"moe_layers": [0, 2]},
            r"1, 3 and so on, and here they are \[0, 2\]",
        ),
    ],
)
def test_experts_that_llama_cpp_takes_for_others_are_told(
    model_type: str, right: dict, wrong: dict, named: str
) -> None:
    fits = AutoConfig.for_model(model_type, num_hidden_layers=4, **right)
    assert not engines.misrouted(fits)
    (line,) = engines.misread_by(
        AutoConfig.for_model(model_type, num_hidden_layers=4, **{**right, **wrong})
    )
    assert re.search(f"^llama.cpp cannot represent this model: it assumes that .*{named}", line)

"""What engines take from a layer's number is held against what a config says of its layers."""

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

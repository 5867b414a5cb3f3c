"""The sizes that rounds leave, from the config alone, are those of the models themselves."""

from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ptl_fast.run import sizes
from support.mixtures import EXPERT_WIDTH, make_mixture
from support.models import DEMO_MODEL
from support.plans import layer_round, neuron_round


@pytest.fixture
def original() -> PretrainedConfig:
    return AutoConfig.from_pretrained(DEMO_MODEL)


@pytest.mark.parametrize(
    ("width", "num_layers", "hidden_size"), [(384, 4, None), (768, 2, None), (768, 4, 96)]
)
def test_predicted_parameters_are_counted_ones(
    original: PretrainedConfig, width: int, num_layers: int, hidden_size: int | None
) -> None:
    make = neuron_round if width < 768 else layer_round
    step = replace(make(width, num_layers), hidden_size=hidden_size)
    predicted = sizes.predicted_size(original, step, 128)
    model = AutoModelForCausalLM.from_config(sizes.config_after(original, step))
    assert predicted["num_parameters"] == model.num_parameters()
    assert (predicted["width"], predicted["num_layers"]) == (width, num_layers)
    dense = sizes.predicted_size(original, None, 128)
    assert predicted["flops_per_token"] < dense["flops_per_token"]


def test_fewer_experts_are_counted() -> None:
    original = make_mixture("qwen3_moe").config
    step = replace(layer_round(EXPERT_WIDTH, 3), num_experts=2)
    dense, predicted = (sizes.predicted_size(original, each, 128) for each in (None, step))
    model = AutoModelForCausalLM.from_config(sizes.config_after(original, step))
    assert predicted["num_parameters"] == model.num_parameters() < dense["num_parameters"]
    assert (predicted["num_experts"], dense["num_experts"]) == (2, 4)
    # a token goes to as many experts as before, and meets two rows of the two routers less
    hidden_size = original.hidden_size
    assert dense["flops_per_token"] - predicted["flops_per_token"] == 2 * 2 * 2 * hidden_size


def test_longer_sequences_cost_more_a_token(original: PretrainedConfig) -> None:
    short, long = (sizes.predicted_size(original, None, length) for length in (128, 256))
    assert short["flops_per_token"] < long["flops_per_token"]
    assert short["num_parameters"] == long["num_parameters"]

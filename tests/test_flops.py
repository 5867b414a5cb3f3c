"""Counts from the config alone equal those of the real model."""

import pytest
import torch
from conftest import FAMILIES, make_model
from test_compact import layer_plan, neuron_plan, random_kept
from torch.utils.flop_counter import FlopCounterMode

from ptl_fast.compact import compact_
from ptl_fast.families import find_family
from ptl_fast.flops import model_size, predicted_size

NUM_TOKENS = 24


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_agree_with_torch_counter(family: str) -> None:
    """Eager attention computes the full square, so every token sees all NUM_TOKENS."""
    model = make_model(family, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.randint(2, 384, (1, NUM_TOKENS)), use_cache=False)
    counted = model_size(model.config, NUM_TOKENS)["flops_per_token"] * NUM_TOKENS
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_size_is_that_of_the_compacted_model(family: str) -> None:
    model = make_model(family)
    predicted = predicted_size(model.config, 20, 5, 16)
    compact_(model, find_family(model), neuron_plan(random_kept(20)))
    assert predicted["num_parameters"] == model.num_parameters()
    assert predicted == model_size(model.config, 16)
    compact_(make_model(family), find_family(model), layer_plan([1, 2]))
    assert predicted_size(model.config, 20, 3, 16)["num_layers"] == 3

"""Weighted sums equal their definition in float64, and with equal weights what the kernels take."""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.data import packing
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.scoring import statistics as statistics_module
from support.least_squares import long_documents
from support.weights import with_weights

RELATIVE = 1e-5  # float32 activations, squared and summed
SUMS = frozenset({"sums"})


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def activations(model: PreTrainedModel, tokens: packing.PackedTokens) -> list[Tensor]:
    """Each layer's, (num_tokens, width), from one pass over the packed sequences in float64."""
    model, found = model.double(), list[Tensor]()
    for ffn in feed_forwards(model, find_family(model)).values():
        ffn.down.register_forward_pre_hook(lambda module, args: found.append(args[0][tokens.mask]))
    model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    return found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sums_are_weighted_and_nothing_else(
    any_model: PreTrainedModel, tokens: packing.PackedTokens, batch_size: int
) -> None:
    weighted, family = with_weights(tokens), find_family(any_model)
    plain = statistics_module.collect(any_model, family, tokens, batch_size, extra=SUMS)
    taken = statistics_module.collect(any_model, family, weighted, batch_size, extra=SUMS)
    for name in ("num_tokens", "change_L3", "maximum_LI"):
        assert torch.equal(taken.tensors()[name], plain.tensors()[name]), name
    assert weighted.weights is not None
    w_T = weighted.weights[tokens.mask].double()
    for layer, a_TI in enumerate(activations(any_model, tokens)):
        expected = {"square_LI": w_T @ a_TI**2, "absolute_LI": w_T @ a_TI.abs()}
        for name, expected_I in expected.items():
            torch.testing.assert_close(
                taken.tensors()[name][layer], expected_I, rtol=RELATIVE, atol=1e-8
            )
        # values of both signs cancel: compared with what they add up to without signs
        error_I = (taken.tensors()["sum_LI"][layer] - w_T @ a_TI).abs()
        assert (error_I <= RELATIVE * expected["absolute_LI"]).all()


def test_equal_weights_give_what_the_kernels_take(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    """With and without the sums beside the squares."""
    equal, family = dataclasses.replace(tokens, weights=tokens.mask.float()), find_family(llama)
    for extra in (frozenset(), SUMS):
        plain, weighted = (
            statistics_module.collect(llama, family, each, 2, extra=extra).tensors()
            for each in (tokens, equal)
        )
        assert plain.keys() == weighted.keys()
        for name, values in plain.items():
            torch.testing.assert_close(weighted[name], values, rtol=RELATIVE, atol=1e-5)

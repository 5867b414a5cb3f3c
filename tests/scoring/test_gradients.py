"""Gradients of the FFNs' weights equal plain autograd's, and the model is left as it was. Those of
activations are tested as scores, in test_scorers.
"""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ptl_fast.data import packing
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.scoring import statistics as statistics_module
from ptl_fast.scoring.gradients import WeightGradients, frozen


@pytest.fixture
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(12)
    return [
        torch.randint(2, 384, (count,), generator=generator).tolist() for count in (6, 11, 4, 9, 1)
    ]


def by_autograd(model: PreTrainedModel, documents: list[list[int]]) -> torch.Tensor:
    """sum of |w * dL/dw| over each neuron's weights, document by document without packing."""
    model.zero_grad()
    for document in documents:
        logits = model(torch.tensor([document]), use_cache=False).logits[0]
        labels = torch.tensor(document[1:], dtype=torch.int64)
        cross_entropy(logits[:-1], labels, reduction="sum").backward()
    neurons_LI = []
    for ffn in feed_forwards(model, find_family(model)).values():
        gate_up = [linear.weight for linear in ffn.inputs] + [ffn.down.weight]
        *rows, down = [(weight * weight.grad).abs().detach() for weight in gate_up]
        row = torch.cat(rows).sum(1)
        neurons_LI.append(row[: ffn.width] + row[ffn.width :] + down.sum(0))
    model.zero_grad()
    return torch.stack(neurons_LI)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_products_equal_autograd_and_nothing_is_left_behind(
    any_model: PreTrainedModel, documents: list[list[int]], batch_size: int
) -> None:
    model, family = any_model.double(), find_family(any_model)
    expected = by_autograd(model, documents)
    still = model.get_input_embeddings().weight.requires_grad_(False)
    # a gradient of the caller's own must survive
    mine = torch.ones_like(feed_forwards(model, family)["0"].down.weight)
    feed_forwards(model, family)["0"].down.weight.grad = mine
    taken = statistics_module.collect(
        model,
        family,
        packing.pack(documents, 16, 1),
        batch_size,
        extra=frozenset({"weight_gradients"}),
    )
    assert int(taken.num_predicted) == sum(len(document) - 1 for document in documents)
    torch.testing.assert_close(taken.weight_gradient_LI, expected, rtol=1e-5, atol=1e-12)
    assert feed_forwards(model, family)["0"].down.weight.grad is mine
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    assert all(each.requires_grad is (each is not still) for each in model.parameters())
    assert not any(each._post_accumulate_grad_hooks for each in model.parameters())


def test_gradients_of_activations_do_not_change_beside_those_of_weights(
    any_model: PreTrainedModel, documents: list[list[int]]
) -> None:
    model, family = any_model.double(), find_family(any_model)
    tokens = packing.pack(documents, 16, 1)
    alone, both = (
        statistics_module.collect(model, family, tokens, 2, extra=frozenset(extra))
        for extra in (["gradients"], ["gradients", "weight_gradients"])
    )
    torch.testing.assert_close(both.gradient_LI, alone.gradient_LI, rtol=1e-9, atol=0.0)
    assert torch.equal(both.num_predicted, alone.num_predicted)


def test_bf16_gradients_are_summed_in_float32() -> None:
    """256 gradients of 1: in bf16, 256 + 1 is 256."""
    linear = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    sums = WeightGradients([])
    sums.totals = {linear.weight: torch.zeros(2, 2)}
    with sums.watch(linear):
        for _ in range(300):
            linear(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert sums.totals[linear.weight].tolist() == [[300.0, 300.0], [300.0, 300.0]]


def test_flags_come_back_after_an_exception(llama: PreTrainedModel) -> None:
    first, *others = llama.parameters()
    first.requires_grad_(False)

    def fail_inside() -> None:
        with frozen(llama, but=[others[0]]):
            assert [each.requires_grad for each in llama.parameters()].count(True) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [each.requires_grad for each in llama.parameters()] == [False, *[True] * len(others)]

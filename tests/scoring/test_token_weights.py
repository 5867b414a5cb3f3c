"""Tokens' divergences equal the plain formula between two models, and weights follow from them."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.base import distributed
from ptl_fast.data import packing
from ptl_fast.model import predictions
from ptl_fast.model.families import DownProjection, down_projections, find_family
from ptl_fast.scoring import token_weights
from support.distillation import plain_divergence
from support.least_squares import long_documents


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def projections(model: PreTrainedModel) -> list[DownProjection]:
    return down_projections(model, find_family(model))


def without_half(model: PreTrainedModel) -> list[Tensor]:
    """The down projections without every second neuron, the others 1.1 times as large."""
    keeps = 1.1 * (torch.arange(projections(model)[0].weight_HI.shape[1]) % 2)
    return [down.weight_HI * keeps for down in projections(model)]


def departures(model: PreTrainedModel, tokens: packing.PackedTokens) -> Tensor:
    downs, probe = projections(model), without_half(model)
    return token_weights.divergence(model, tokens, 2, downs, probe)


def test_divergence_is_that_of_two_models(
    any_model: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one document at a time, in float64. Logits come in ragged chunks."""
    monkeypatch.setattr(predictions, "CHUNK_BYTES", 4 * 384 * 50)
    found = departures(any_model, tokens)
    double = copy.deepcopy(any_model).double()
    probe = copy.deepcopy(double)
    for down, weight in zip(projections(probe), without_half(double), strict=True):
        down.module.weight.data = weight
    starts = (tokens.mask & (tokens.position_ids == 0)).nonzero().tolist()
    assert len(starts) == 4
    for row, start in starts:
        length = 1 + int((tokens.position_ids[row, start + 1 :] > 0).long().cumprod(0).sum())
        ids = tokens.input_ids[row : row + 1, start : start + length]
        with torch.no_grad():
            own, other = (model(ids, use_cache=False).logits[0] for model in (double, probe))
        expected_T = plain_divergence(other, own, own.topk(16).indices, 1.0)
        expected_T[-1] = 0  # nothing is predicted after a document's end
        torch.testing.assert_close(
            found[row, start : start + length].double(), expected_T, rtol=1e-3, atol=1e-6
        )
    assert not found[~tokens.mask].any()
    assert found.max() > 1e-3, "the probe differs"


def test_the_model_is_as_before(llama: PreTrainedModel, tokens: packing.PackedTokens) -> None:
    llama.train()
    before = {name: (value, value.clone()) for name, value in llama.named_parameters()}
    pointers = [down.module.weight.data_ptr() for down in projections(llama)]
    departures(llama, tokens)
    assert llama.training
    assert [down.module.weight.data_ptr() for down in projections(llama)] == pointers
    for name, parameter in llama.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_ranks_share_the_sequences(
    llama: PreTrainedModel, tokens: packing.PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sequences and four ranks: one has none."""
    assert len(tokens) == 3
    whole, shares = departures(llama, tokens), []
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(departures(llama, tokens))
    for one in shares[:3]:
        assert one.any()
    assert not shares[3].any()
    torch.testing.assert_close(sum(shares), whole, rtol=1e-4, atol=1e-6)


def test_a_probe_that_predicts_nothing_is_named(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    probe = [torch.full_like(down.weight_HI, torch.nan) for down in projections(llama)]
    with pytest.raises(ValueError, match=r"NaN or infinite; use --dtype .* --token-weights none"):
        token_weights.divergence(llama, tokens, 2, projections(llama), probe)


def one_document(values: list[float]) -> tuple[packing.PackedTokens, Tensor]:
    """A document of so many tokens with these divergences, in a sequence with two of padding."""
    num_tokens = len(values)
    tokens = packing.PackedTokens(
        torch.ones(1, num_tokens + 2, dtype=torch.int64),
        torch.tensor([[*range(num_tokens), 0, 0]]),
        torch.tensor([[True] * num_tokens + [False] * 2]),
    )
    return tokens, torch.tensor([[*values, 0.0, 0.0]])


def test_weights_by_hand() -> None:
    """Half of the weight is spread evenly; divergences above ten times their mean count as that."""
    tokens, divergence = one_document([0.0, 1.0, 2.0, 1.0])
    weights = token_weights.weighted(tokens, divergence).weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.0, 1.5, 1.0, 0.0, 0.0]]))
    # the mean is 1, so 99 counts as 10, and the mean of what counts is 0.11
    tokens, divergence = one_document([99.0, *[1 / 99] * 99])
    weights = token_weights.weighted(tokens, divergence).weights
    assert weights is not None
    assert float(weights[0, 0]) == pytest.approx(0.5 + 0.5 * 10 / 0.11)
    assert float(weights[0, 1]) == pytest.approx(0.5 + 0.5 / 99 / 0.11)
    assert float(weights.sum()) == pytest.approx(100)


def test_a_probe_without_a_difference_gives_equal_weights() -> None:
    tokens, divergence = one_document([0.0] * 5)
    weighted = token_weights.weighted(tokens, divergence)
    assert weighted.weights is not None
    assert torch.equal(weighted.weights, tokens.mask.float())
    assert token_weights.summary(weighted, divergence) == {
        "mean_divergence": 0.0,
        "top_tenth": 0.1,
        "num_tokens": 5,
        "effective_tokens": 5,
    }


def test_summary_by_hand() -> None:
    tokens, divergence = one_document([4.0, *[0.0] * 18, 4.0])
    weighted = token_weights.weighted(tokens, divergence)
    # two of twenty tokens have all of it: weights 5.5 twice, 0.5 eighteen times
    assert token_weights.summary(weighted, divergence) == {
        "mean_divergence": pytest.approx(0.4),
        "top_tenth": 1.0,
        "num_tokens": 20,
        "effective_tokens": round(20**2 / (2 * 5.5**2 + 18 * 0.5**2)),
    }


def test_tokens_that_do_not_count_have_no_weight_and_change_none() -> None:
    """With answers alone, the mean of their weights is 1, whatever the others' divergences are."""
    documents = [[7] * 40, [8] * 21]
    plain = packing.pack(documents, 61, 1, answers=[[10, 20], [5, 21]])
    answers = replace(plain, count_answers=True)
    divergence = torch.rand(1, 61, generator=torch.Generator().manual_seed(2))
    weights = token_weights.weighted(answers, divergence).weights
    assert weights is not None
    assert torch.equal(weights > 0, answers.counted)
    assert float(weights[answers.counted].mean()) == pytest.approx(1)
    other = divergence.where(answers.counted, 100.0)
    again = token_weights.weighted(answers, other)
    assert torch.equal(again.weights, weights)
    assert token_weights.summary(again, other)["num_tokens"] == 26
    whole = token_weights.weighted(plain, divergence).weights
    assert torch.equal(whole > 0, plain.mask)

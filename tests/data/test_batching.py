"""Batches hold each token once, in the layout that attention wants; ranks share them."""

import dataclasses

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.base import distributed
from ptl_fast.data import batching
from support.recovery import packed


def tokens_of(batches: list[batching.Batch]) -> list[int]:
    """All tokens that count, in order of their value."""
    rows = [batch.inputs["input_ids"].view(batch.mask.shape)[batch.mask] for batch in batches]
    return torch.cat(rows).sort().values.tolist()


@pytest.mark.parametrize("varlen", [False, True])
def test_documents_come_once_in_batches_that_are_not_too_large(
    varlen: bool, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "needs_one_row", lambda model: varlen)
    tokens = packed()
    batches = list(batching.document_batches(llama, tokens, 2, ""))
    assert tokens_of(batches) == tokens.input_ids[tokens.mask].sort().values.tolist()
    assert all(batch.inputs["input_ids"].numel() <= 2 * 32 for batch in batches)
    for batch in batches:
        positions = batch.inputs["position_ids"]
        assert positions.shape == batch.labels.shape
        assert (positions.shape[0] == 1) if varlen else (positions[:, 0] == 0).all()


@pytest.mark.parametrize("varlen", [False, True])
def test_weights_stay_with_their_tokens(
    varlen: bool, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token's weight is made its id."""
    monkeypatch.setattr(batching, "needs_one_row", lambda model: varlen)
    tokens = packed()
    assert all(batch.weights is None for batch in batching.document_batches(llama, tokens, 2, ""))
    weighted = dataclasses.replace(tokens, weights=tokens.input_ids.float()).first(300)
    for layout in (
        batching.document_batches(llama, weighted, 2, ""),
        batching.sequence_batches(llama, weighted, 2),
    ):
        for batch in layout:
            assert batch.weights is not None
            assert batch.weights.shape == batch.mask.shape
            ids = batch.inputs["input_ids"].view(batch.mask.shape)
            assert torch.equal(batch.weights[batch.mask], ids[batch.mask].float())


def test_ranks_share_the_batches(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = packed()
    whole = list(batching.document_batches(llama, tokens, 1, ""))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(batching.document_batches(llama, tokens, 1, "")))
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    assert tokens_of(shares[0] + shares[1]) == tokens_of(whole)


@pytest.mark.parametrize("varlen", [False, True])
def test_sequences_come_in_their_order(
    varlen: bool, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "needs_one_row", lambda model: varlen)
    tokens = packed()
    batches = list(batching.sequence_batches(llama, tokens, 3))
    assert [len(batch.mask) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    for name in ("input_ids", "position_ids"):
        joined = torch.cat([batch.inputs[name].view(-1, 32) for batch in batches])
        assert torch.equal(joined, getattr(tokens, name))
    labels = torch.cat([batch.labels.view(-1, 32) for batch in batches])
    assert (labels[~tokens.mask] == -100).all()


def test_training_examples_have_a_row_each_or_one_for_all(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([3, 4])}]
    assert batching.collator(llama)(examples)["input_ids"].tolist() == [[1, 2], [3, 4]]
    monkeypatch.setattr(batching, "needs_one_row", lambda model: True)
    assert batching.collator(llama)(examples)["input_ids"].tolist() == [[1, 2, 3, 4]]


def test_padding_is_on_the_right() -> None:
    assert batching.pad_right([[5], [6, 7, 8]], 1).tolist() == [[5, 1, 1], [6, 7, 8]]

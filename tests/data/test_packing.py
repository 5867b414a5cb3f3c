"""Packed documents keep every token once, do not see each other, and waste little."""

import itertools
import random
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.data import packing, sampling
from ptl_fast.data.documents import Document
from ptl_fast.demo.problems import generate


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=120), length=st.integers(4, 24))
def test_packing_keeps_every_token_once(lengths: list[int], length: int) -> None:
    counter = iter(range(1, 10**6))
    documents = [[next(counter) for _ in range(count)] for count in lengths]
    if sum(lengths) < length:
        with pytest.raises(ValueError, match="less than one sequence"):
            packing.pack(documents, length, 0)
        return
    packed = packing.pack(documents, length, 0)
    assert packed.num_tokens == sum(lengths)
    assert sorted(packed.input_ids[packed.mask].tolist()) == list(range(1, sum(lengths) + 1))
    pieces = {
        tuple(document[first : first + length])
        for document in documents
        for first in range(0, len(document), length)
    }
    for row in range(len(packed)):
        ids, positions, mask = packed.input_ids[row], packed.position_ids[row], packed.mask[row]
        starts = [*(positions == 0).nonzero().flatten().tolist(), length]
        for start, end in itertools.pairwise(starts):
            if mask[start]:
                assert tuple(ids[start:end].tolist()) in pieces
                assert positions[start:end].tolist() == list(range(end - start))
            else:
                assert end == start + 1, "each padding token stands alone"
        assert packed[row]["labels"][positions == 0].eq(packing.IGNORED).all()


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    length=st.integers(4, 24),
    max_tokens=st.integers(1, 200),
)
def test_unpacked_documents_have_a_row_each(
    lengths: list[int], length: int, max_tokens: int
) -> None:
    counter = itertools.count(1)
    documents = [[next(counter) for _ in range(count)] for count in [length, *lengths]]
    pieces = [
        document[first : first + length]
        for document in documents
        for first in range(0, len(document), length)
    ]
    found = []
    for batch in packing.pack(documents, length, 0).unpacked(max_tokens):
        assert batch.mask.numel() <= max_tokens or len(batch) == 1
        assert batch.mask.any(0).all(), "the longest one has no padding"
        for ids, positions, mask in zip(
            batch.input_ids, batch.position_ids, batch.mask, strict=True
        ):
            assert positions.tolist() == list(range(len(positions)))
            assert torch.equal(mask, positions < mask.sum()), "padding comes last"
            found.append(ids[mask].tolist())
    assert sorted(found) == sorted(pieces)
    assert list(map(len, found)) == sorted(map(len, pieces), reverse=True)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=8), max_tokens=st.integers(1, 900)
)
def test_unpacked_batches_cost_the_least_of_all_ways(lengths: list[int], max_tokens: int) -> None:
    lengths = sorted(lengths, reverse=True)

    def cost(cuts: list[int]) -> float:
        batches = [lengths[first:end] for first, end in itertools.pairwise(cuts)]
        if any(len(batch) > 1 and batch[0] * len(batch) > max_tokens for batch in batches):
            return float("inf")
        return sum(batch[0] * len(batch) + packing.BATCH_COST for batch in batches)

    inner = [
        cuts
        for count in range(len(lengths))
        for cuts in itertools.combinations(range(1, len(lengths)), count)
    ]
    assert cost(packing._least_padding(lengths, max_tokens)) == min(
        cost([0, *cuts, len(lengths)]) for cuts in inner
    )


def test_packing_wastes_little(tokenizer: PreTrainedTokenizerBase) -> None:
    documents = [Document(**problem) for problem in generate(500, 5, "training")]
    packed = packing.pack(sampling.tokenize(documents, tokenizer), 256, 1)
    assert packed.num_tokens / packed.mask.numel() > 0.9


def test_packing_takes_time_in_proportion_to_the_documents() -> None:
    """Four times the documents take about four times as long; where each looks at all sequences,
    sixteen times.
    """
    generator = random.Random(0)
    documents = [[7] * generator.randint(10, 256) for _ in range(32_000)]

    def seconds(count: int) -> float:
        start = time.process_time()
        packing.pack(documents[:count], 256, 0)
        return time.process_time() - start

    assert min(seconds(32_000) for _ in range(2)) < 8 * min(seconds(8_000) for _ in range(3))


def test_packed_documents_do_not_see_each_other(any_model: PreTrainedModel) -> None:
    """Each document's logits in a packed sequence are those of the document alone, also under a
    sliding window.
    """
    generator = torch.Generator().manual_seed(2)
    documents = [
        torch.randint(2, 384, (count,), generator=generator).tolist() for count in (13, 7, 5, 20)
    ]
    packed = packing.pack(documents, 32, 1)
    with torch.inference_mode():
        logits = any_model(
            packed.input_ids, position_ids=packed.position_ids, use_cache=False
        ).logits
        for document in documents:
            row, start = next(
                (row, start)
                for row in range(len(packed))
                for start in range(32)
                if packed.input_ids[row, start : start + len(document)].tolist() == document
            )
            alone = any_model(torch.tensor([document]), use_cache=False).logits[0]
            torch.testing.assert_close(
                logits[row, start : start + len(document)], alone, atol=2e-5, rtol=2e-5
            )


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=30),
    length=st.integers(4, 24),
    seed=st.integers(0, 99),
)
def test_answers_stay_with_their_tokens(lengths: list[int], length: int, seed: int) -> None:
    """Every token has an id of its own, and an answer's is odd."""
    counter, drawn = itertools.count(1), random.Random(seed)
    documents, answers = [], []
    for number, count in enumerate([length, *lengths]):
        marks = [drawn.random() < 0.5 for _ in range(count)]
        documents.append([2 * next(counter) + mark for mark in marks])
        borders = [index for index in range(count) if marks[index]]
        # a run a token; the last document has no answer marked, so all of it is one
        answers.append([border for begin in borders for border in (begin, begin + 1)])
        if number == len(lengths):
            documents[-1], answers[-1] = [2 * token + 1 for token in documents[-1]], None
    packed = packing.pack(documents, length, 0, answers=answers)
    plain = packing.pack(documents, length, 0)
    assert plain.answers is None
    assert torch.equal(packed.input_ids, plain.input_ids)
    doubled = packed.followed_by(packed.rows(slice(0, 1)))
    for each in [packed, packed.rows(slice(1, None)), doubled, *packed.unpacked(50)]:
        odd = each.mask & (each.input_ids % 2 == 1)
        assert torch.equal(each.answers, odd)
        alone = replace(each, count_answers=True, learn_answers=True)
        assert alone.num_tokens == each.num_tokens
        assert (alone.num_counted, each.num_counted) == (int(odd.sum()), each.num_tokens)
        rows, whole = alone[:], each[:]
        assert torch.equal(rows["mask"], odd)
        assert torch.equal(whole["mask"], each.mask)
        assert torch.equal(rows["labels"] != packing.IGNORED, odd & (each.position_ids > 0))
        assert torch.equal(whole["labels"] != packing.IGNORED, each.mask & (each.position_ids > 0))
        assert torch.equal(alone.teaches, (rows["labels"] != packing.IGNORED).any(1))

"""Corpora -> packed token sequences; one non-overlapping subset a round.

Which documents a run sees follows from their content and the seed alone: each has a random number
made of both, and those with the smallest numbers are taken. So one pass over the data chooses them
and holds no more than what it chooses.
Documents are packed back to back, positions restart at each, and transformers keeps attention
inside a document where they restart."""

import hashlib
import heapq
import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ptl_fast.data.documents import Document
from ptl_fast.data.readers import Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")
BATCH = 1000  # documents that are tokenized together
HELD_OUT_SHARE = 1 / 20  # at most, of a corpus that is used as a whole


@dataclass(frozen=True)
class Corpus:
    """What a run trains on and what it keeps aside."""

    held_out: list[Document]
    subsets: list[list[Sequence[int]]]
    """Token ids of each round's documents, which no other round sees."""
    documents: list[list[Document]]
    """The same documents as text, in the same order; empty lists unless they were asked for."""
    fingerprint: str
    """SHA-256 of all documents read and of the parts' weights, so that a run does not continue on
    other data.
    """

    def cut(self, weights: Sequence[Sequence[float]]) -> "Corpus":
        """Cut each subset into pieces in proportion to its weights, whatever they sum to. A subset
        with one weight stays whole.
        """
        subsets: list[list[Sequence[int]]] = []
        documents: list[list[Document]] = []
        for ids, texts, parts in zip(self.subsets, self.documents, weights, strict=True):
            sizes, shares = list(map(len, ids)), [part / sum(parts) for part in parts]
            subsets += _cut(ids, sizes, shares)
            documents += _cut(texts, sizes, shares)
        return replace(self, subsets=subsets, documents=documents)


class _Candidate(NamedTuple):
    """A document and its random number, ``order``: 128 bits of the seed and the content, so equal
    documents have equal ones.
    """

    order: int
    document: Document
    ids: Sequence[int]


def split_corpus(
    parts: Sequence[Part],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    shares: Sequence[float],
    num_tokens: int | None,
    num_held_out: int,
    seed: int,
    keep_documents: bool = False,
) -> Corpus:
    """Choose documents by seed, keep some aside, and cut the rest into one subset a round; every
    subset has the parts' weights.

    The same seed gives the same subsets whatever the number of ranks. ``shares`` (summing to 1) are
    the subsets' parts of ``num_tokens``, or of all there is when that is None or more than there
    is; with several parts, there is no more than the one that ends first allows at its weight.
    ``num_held_out`` documents are kept aside, in the same weights, but of a part that is used as a
    whole no more than a twentieth. ``keep_documents`` keeps the subsets' text in memory too.

    Raises:
        ValueError: a part holds too few documents for a subset each.
    """
    digest = hashlib.sha256()
    taken: set[int] = set()
    samples = []
    for part in parts:
        digest.update(f"{part.weight} ".encode())
        needed = None if num_tokens is None else part.weight * num_tokens
        sample = _Sample(needed, round(part.weight * num_held_out), taken)
        sample.fill(part, tokenizer, seed, digest)
        taken |= sample.orders
        samples.append(sample.result())
    available = min(
        sum(len(item.ids) for item in training) / part.weight
        for part, (_, training) in zip(parts, samples, strict=True)
    )
    total = available if num_tokens is None else min(available, num_tokens)
    cuts = []
    for part, (_, training) in zip(parts, samples, strict=True):
        used = list(_until(training, part.weight * total))
        cuts.append(_cut(used, [len(item.ids) for item in used], shares))
        if not all(cuts[-1]):
            rule = " (blank lines separate documents)" if part.name.endswith(".txt") else ""
            found = f"{part.name} has {len(used)} training documents{rule}"
            raise ValueError(f"{found}, too few for {len(shares)} rounds; give more data")
    chosen = [
        _mix([[(len(item.ids), item) for item in cut[number]] for cut in cuts])
        for number in range(len(shares))
    ]
    return Corpus(
        held_out=_mix([[(1, item.document) for item in kept] for kept, _ in samples]),
        subsets=[[item.ids for item in subset] for subset in chosen],
        documents=[[item.document for item in subset if keep_documents] for subset in chosen],
        fingerprint=digest.hexdigest(),
    )


class _Sample:
    """The documents of one part that come first in the order of their random numbers: as few as
    what is needed.

    First the held-out ones, then as many as hold ``num_tokens`` tokens (None: all).
    """

    def __init__(self, num_tokens: float | None, num_held_out: int, taken: set[int]) -> None:
        self.num_tokens = math.inf if num_tokens is None else num_tokens
        self.num_held_out = num_held_out
        self.taken = taken
        self.orders: set[int] = set()
        self.complete = True
        self._limit: float = math.inf  # documents from this number on are not needed
        # heaps with the largest number first
        self._held_out: list[tuple[int, _Candidate]] = []
        self._training: list[tuple[int, _Candidate]] = []
        self._num_training_tokens = 0

    @property
    def full(self) -> bool:
        return (
            len(self._held_out) == self.num_held_out
            and self._num_training_tokens >= self.num_tokens
        )

    def fill(
        self, part: Part, tokenizer: "PreTrainedTokenizerBase", seed: int, digest: "hashlib._Hash"
    ) -> None:
        """Read the part, or of one that comes shuffled as much as is needed. All that is read
        enters the digest.
        """
        documents = iter(part.documents)
        while batch := list(itertools.islice(documents, BATCH)):
            new: dict[int, Document] = {}
            for document in batch:
                content = _content(document)
                digest.update(document.template.encode() + content)
                order = _random_number(content, seed)
                if order < self._limit and order not in self.taken and order not in self.orders:
                    new[order] = document
            for (order, document), ids in zip(
                new.items(), tokenize(list(new.values()), tokenizer), strict=True
            ):
                self._add(_Candidate(order, document, array("i", ids)))
            if part.shuffled and self.full:
                self.complete = False
                break

    def result(self) -> tuple[list[_Candidate], list[_Candidate]]:
        """(held out, training), each in the order of the random numbers."""
        ordered = [
            candidate for _, candidate in sorted([*self._held_out, *self._training], reverse=True)
        ]
        num_held_out = self.num_held_out
        if self.complete:  # nothing is left over: what is held out is missing in training
            num_held_out = min(num_held_out, int(len(ordered) * HELD_OUT_SHARE))
        return ordered[:num_held_out], ordered[num_held_out:]

    def _add(self, candidate: _Candidate) -> None:
        if candidate.order >= self._limit:
            return
        self.orders.add(candidate.order)
        heapq.heappush(self._held_out, (-candidate.order, candidate))
        if len(self._held_out) <= self.num_held_out:
            return
        _, last = heapq.heappop(self._held_out)
        heapq.heappush(self._training, (-last.order, last))
        self._num_training_tokens += len(last.ids)
        while self._num_training_tokens - len(self._training[0][1].ids) >= self.num_tokens:
            _, last = heapq.heappop(self._training)
            self._num_training_tokens -= len(last.ids)
            self._limit = last.order
            self.orders.remove(last.order)
            self.complete = False


def _content(document: Document) -> bytes:
    return f"{len(document.question)} {document.question}{document.answer}".encode()


def _random_number(content: bytes, seed: int) -> int:
    """128 bits of the content and the seed; the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(content, digest_size=16, key=str(seed).encode()).digest(), "big"
    )


def _until(documents: Iterable[_Candidate], num_tokens: float) -> Iterator[_Candidate]:
    """The first documents that hold ``num_tokens`` tokens together, or all."""
    seen = 0
    for document in documents:
        if seen >= num_tokens:
            return
        seen += len(document.ids)
        yield document


def _cut(documents: Sequence[T], sizes: Sequence[int], shares: Sequence[float]) -> list[list[T]]:
    """Cut into one piece a share; a piece's tokens (``sizes``) differ from its share by less than a
    document at either end.
    """
    total = sum(sizes)
    ends = list(itertools.accumulate(shares))
    subsets: list[list[T]] = [[] for _ in shares]
    seen, subset = 0, 0
    for document, size in zip(
        documents, sizes, strict=False
    ):  # no documents where the text was not kept
        while subset < len(shares) - 1 and seen >= round(
            ends[subset] * total, 6
        ):  # 0.6000000000000001 of 50 are 30
            subset += 1
        subsets[subset].append(document)
        seen += size
    return subsets


def _mix(lists: Sequence[Sequence[tuple[int, T]]]) -> list[T]:
    """Join lists of (size, item) so that each advances evenly: every beginning of the result holds
    them in the same proportion.
    """
    positions = []
    for number, items in enumerate(lists):
        total, seen = sum(size for size, _ in items), 0
        for index, (size, _) in enumerate(items):
            positions.append((seen / total, number, index))
            seen += size
    return [lists[number][index][1] for _, number, index in sorted(positions)]


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 of the documents, so that a run does not continue on other data."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.template.encode() + _content(document))
    return digest.hexdigest()


def tokenize(
    documents: Sequence[Document],
    tokenizer: "PreTrainedTokenizerBase",
    num_tokens: int | None = None,
) -> Iterator[list[int]]:
    """Yield each document's token ids, with the end-of-sequence token at the end, until
    ``num_tokens`` are reached.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    total = 0
    for first in range(0, len(documents), BATCH):
        texts = [document.text for document in documents[first : first + BATCH]]
        for ids in tokenizer(texts, verbose=False)["input_ids"]:
            if num_tokens is not None and total >= num_tokens:
                return
            total += len(ids) + len(end)
            yield ids if ids[-1:] == end else ids + end

"""Draw a run's documents from its corpora: a held-out set, and one disjoint subset per round.

A document's sort key is a hash of the seed and its content, and the documents with the smallest
keys are taken: a random sample that depends on neither the order of the data nor the number of
ranks. One pass over the data finds it, and only the sample is held in memory. Streamed sources
arrive shuffled and are read only until there are enough documents.
"""

import hashlib
import heapq
import itertools
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ptl_fast.data.chats import BATCH, encode
from ptl_fast.data.documents import Document
from ptl_fast.data.readers import Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")
HELD_OUT_SHARE = 1 / 20  # upper limit when all of a corpus is used: the rest is for training


@dataclass(frozen=True)
class Corpus:
    """A run's data: the training documents of each round, and the documents held out."""

    held_out: list[Document]
    """Never trained on."""
    subsets: list[list[Sequence[int]]]
    """Token ids of each round's training documents. No two rounds share a document."""
    documents: list[list[Document]]
    """The same documents as text, in the same order; empty lists without ``keep_documents``."""
    fingerprint: str
    """SHA-256 of the documents read and the parts' weights: resuming on other data is refused."""
    answers: "list[list[array[int] | None]]"
    """Where the answers are in the documents of ``subsets``, as in ``chats.Encoded``; empty lists
    without ``find_answers``.
    """
    num_chats: int = 0
    """How many of the training documents are chats."""

    def cut(self, weights: Sequence[Sequence[float]]) -> "Corpus":
        """Return a corpus in which each subset is split in proportion to its list of weights.

        Args:
            weights: one list per subset, with one weight per piece; they need not sum to 1. A
                single weight leaves the subset whole.
        """
        subsets: list[list[Sequence[int]]] = []
        documents: list[list[Document]] = []
        answers: list[list[array[int] | None]] = []
        every = zip(self.subsets, self.documents, self.answers, weights, strict=True)
        for ids, texts, borders, parts in every:
            sizes, shares = list(map(len, ids)), [part / sum(parts) for part in parts]
            subsets += _cut(ids, sizes, shares)
            documents += _cut(texts, sizes, shares)
            answers += _cut(borders, sizes, shares)
        return replace(self, subsets=subsets, documents=documents, answers=answers)


class Candidate(NamedTuple):
    """A tokenized document and its sort key."""

    order: int
    """128-bit hash of the seed and the content: duplicates have the same key."""
    document: Document
    ids: Sequence[int]
    answers: "array[int] | None" = None
    """As in ``chats.Encoded``."""


@dataclass(frozen=True)
class Sample:
    """A random sample of the documents of several parts; each list has an entry per part."""

    names: list[str]
    weights: list[float]
    """They sum to 1."""
    held_out: list[list[Document]]
    training: list[list[Candidate]]
    """In a random order: every beginning is a random sample too."""
    fingerprint: str
    """SHA-256 of the documents read and the parts' weights."""
    finds_answers: bool = False
    """Whether it is known which tokens of ``training`` are answers."""


def split_corpus(
    parts: Sequence[Part],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    shares: Sequence[float],
    num_tokens: int | None,
    num_held_out: int,
    seed: int,
    keep_documents: bool = False,
    find_answers: bool = False,
) -> Corpus:
    """Sample documents by seed, hold some out, and split the others into one subset per round.

    ``draw`` and ``divide`` in one; they explain the arguments and the errors.
    """
    sample = draw(
        parts,
        tokenizer,
        num_tokens=num_tokens,
        num_held_out=num_held_out,
        seed=seed,
        find_answers=find_answers,
    )
    return divide(sample, shares=shares, num_tokens=num_tokens, keep_documents=keep_documents)


def draw(
    parts: Sequence[Part],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num_tokens: int | None,
    num_held_out: int,
    seed: int,
    find_answers: bool = False,
) -> Sample:
    """Sample the parts' documents by seed. Duplicates of a document count once.

    Args:
        parts: the sources of documents; their weights sum to 1.
        num_tokens: training tokens in total, at the parts' weights; None takes all.
        num_held_out: documents to hold out; at most a twentieth of a part that is used up.
        find_answers: also find out which tokens are answers.
    """
    digest = hashlib.sha256()
    # keys that an earlier part took: a duplicate in a later part must not be trained on twice, or
    # be trained on here and held out there
    taken: set[int] = set()
    samples = []
    for part in parts:
        digest.update(f"{part.weight} ".encode())
        needed = None if num_tokens is None else part.weight * num_tokens
        sample = _Sample(needed, round(part.weight * num_held_out), taken, find_answers)
        sample.fill(part, tokenizer, seed, digest)
        taken |= sample.orders
        samples.append(sample.result())
    return Sample(
        names=[part.name for part in parts],
        weights=[part.weight for part in parts],
        held_out=[[item.document for item in kept] for kept, _ in samples],
        training=[training for _, training in samples],
        fingerprint=digest.hexdigest(),
        finds_answers=find_answers,
    )


def divide(
    sample: Sample,
    *,
    shares: Sequence[float],
    num_tokens: int | None,
    keep_documents: bool = False,
) -> Corpus:
    """Split a sample into one subset per round.

    The held-out set and every subset mix the parts in proportion to their weights. The same sample
    gives the same subsets for any number of ranks. Subsets are cut between documents, so their
    sizes are right to within about a document.

    Args:
        shares: each subset's fraction of the training tokens; they sum to 1.
        num_tokens: training tokens in total; None takes all. If the parts hold fewer, the one that
            runs out first at its weight limits the total.
        keep_documents: also keep the subsets' text in memory.

    Raises:
        ValueError: a part holds too few documents to give each subset one.
    """
    # a part with n tokens and weight w supports a mixture of at most n / w tokens
    available = min(
        sum(len(item.ids) for item in training) / weight
        for weight, training in zip(sample.weights, sample.training, strict=True)
    )
    total = available if num_tokens is None else min(available, num_tokens)
    cuts = []
    for name, weight, training in zip(sample.names, sample.weights, sample.training, strict=True):
        used = list(_until(training, weight * total))
        cuts.append(_cut(used, [len(item.ids) for item in used], shares))
        if not all(cuts[-1]):
            rule = " (blank lines separate documents)" if name.endswith(".txt") else ""
            found = f"{name} has {len(used)} training documents{rule}"
            raise ValueError(f"{found}, too few for {len(shares)} rounds; give more data")
    chosen = [
        _mix([[(len(item.ids), item) for item in cut[number]] for cut in cuts])
        for number in range(len(shares))
    ]
    return Corpus(
        held_out=_mix([[(1, document) for document in kept] for kept in sample.held_out]),
        subsets=[[item.ids for item in subset] for subset in chosen],
        documents=[[item.document for item in subset if keep_documents] for subset in chosen],
        fingerprint=sample.fingerprint,
        answers=[[item.answers for item in subset if sample.finds_answers] for subset in chosen],
        num_chats=sum(item.document.chat is not None for subset in chosen for item in subset),
    )


class _Sample:
    """The documents of one part with the smallest sort keys, and no more of them than needed.

    The first ``num_held_out`` of them are held out; the next ones are for training, until they
    hold ``num_tokens`` tokens (None: all). Keys in ``taken`` are skipped.
    """

    def __init__(
        self,
        num_tokens: float | None,
        num_held_out: int,
        taken: set[int],
        find_answers: bool = False,
    ) -> None:
        self.find_answers = find_answers
        self.num_tokens = math.inf if num_tokens is None else num_tokens
        self.num_held_out = num_held_out
        self.taken = taken
        self.orders: set[int] = set()
        # whether the sample is the whole part: nothing was dropped or left unread
        self.complete = True
        # documents with this key or a larger one are not needed
        self._limit: float = math.inf
        # heapq pops the smallest entry: with negated keys, the document with the largest key
        self._held_out: list[tuple[int, Candidate]] = []
        self._training: list[tuple[int, Candidate]] = []
        self._num_training_tokens = 0

    @property
    def full(self) -> bool:
        """Whether both the held-out set and the training tokens are complete."""
        return (
            len(self._held_out) == self.num_held_out
            and self._num_training_tokens >= self.num_tokens
        )

    def fill(
        self, part: Part, tokenizer: "PreTrainedTokenizerBase", seed: int, digest: "hashlib._Hash"
    ) -> None:
        """Read the part and add all that is read to the digest.

        A part that comes shuffled is read only until the sample is full: its beginning is already
        a random sample.
        """
        documents = iter(part.documents)
        while batch := list(itertools.islice(documents, BATCH)):
            # decide by key first: only documents that may stay are tokenized, which costs the most
            new: dict[int, Document] = {}
            for document in batch:
                content = _content(document)
                digest.update(_identity(document))
                order = _random_number(content, seed)
                if order < self._limit and order not in self.taken and order not in self.orders:
                    new[order] = document
            encoded = encode(list(new.values()), tokenizer, self.find_answers)
            for (order, document), (ids, answers) in zip(new.items(), encoded, strict=True):
                self._add(Candidate(order, document, array("i", ids), answers))
            if part.shuffled and self.full:
                self.complete = False
                break

    def result(self) -> tuple[list[Candidate], list[Candidate]]:
        """(held out, training), each in ascending order of the sort keys."""
        # entries are (-key, candidate), so descending entries are ascending keys
        ordered = [
            candidate for _, candidate in sorted([*self._held_out, *self._training], reverse=True)
        ]
        num_held_out = self.num_held_out
        # there is no surplus to hold out, so each held-out document is one less to train on
        if self.complete:
            num_held_out = min(num_held_out, int(len(ordered) * HELD_OUT_SHARE))
        return ordered[:num_held_out], ordered[num_held_out:]

    def _add(self, candidate: Candidate) -> None:
        """Insert a candidate, and drop those with the largest keys that are no longer needed."""
        # the limit may have fallen since ``fill`` checked this document's batch
        if candidate.order >= self._limit:
            return
        self.orders.add(candidate.order)
        heapq.heappush(self._held_out, (-candidate.order, candidate))
        if len(self._held_out) <= self.num_held_out:
            return
        # the held-out heap keeps the smallest keys; its largest moves on to training
        _, last = heapq.heappop(self._held_out)
        heapq.heappush(self._training, (-last.order, last))
        self._num_training_tokens += len(last.ids)
        # drop while enough tokens are left without the document with the largest key
        while self._num_training_tokens - len(self._training[0][1].ids) >= self.num_tokens:
            _, last = heapq.heappop(self._training)
            self._num_training_tokens -= len(last.ids)
            self._limit = last.order
            self.orders.remove(last.order)
            self.complete = False


def _content(document: Document) -> bytes:
    """The bytes that identify a document, its template aside."""
    # the question's length tells ("ab", "c") from ("a", "bc")
    return f"{len(document.question)} {document.question}{document.answer}".encode()


def _identity(document: Document) -> bytes:
    """All that a document's tokens depend on, but for the tokenizer."""
    identity = document.template.encode() + _content(document)
    if document.chat is None:
        return identity
    # the same text may be split into turns in another way
    turns = [document.chat.messages, document.chat.tools]
    return identity + json.dumps(turns, sort_keys=True, default=str).encode()


def _random_number(content: bytes, seed: int) -> int:
    """A document's sort key: 128 bits, uniform over documents."""
    # not hash(): Python salts it in each process, and all ranks must draw the same documents
    return int.from_bytes(
        hashlib.blake2b(content, digest_size=16, key=str(seed).encode()).digest(), "big"
    )


def _until(documents: Iterable[Candidate], num_tokens: float) -> Iterator[Candidate]:
    """Yield documents until they hold ``num_tokens`` tokens together, or all of them."""
    seen = 0
    for document in documents:
        if seen >= num_tokens:
            return
        seen += len(document.ids)
        yield document


def _cut(documents: Sequence[T], sizes: Sequence[int], shares: Sequence[float]) -> list[list[T]]:
    """Split documents into consecutive pieces, one per share; a document is never split.

    Args:
        sizes: tokens per document. Each border is less than one document away from the exact one.
        shares: each piece's fraction of the tokens; they sum to 1.
    """
    total = sum(sizes)
    ends = list(itertools.accumulate(shares))
    subsets: list[list[T]] = [[] for _ in shares]
    seen, subset = 0, 0
    # not strict: ``documents`` is empty where the text was not kept
    for document, size in zip(documents, sizes, strict=False):
        # rounded, because sums of shares are inexact: 0.6000000000000001 of 50 must be 30
        while subset < len(shares) - 1 and seen >= round(ends[subset] * total, 6):
            subset += 1
        subsets[subset].append(document)
        seen += size
    return subsets


def _mix(lists: Sequence[Sequence[tuple[int, T]]]) -> list[T]:
    """Interleave lists of (size, item) evenly, by size: every prefix holds the same mixture.

    Calibration and training may stop before a subset's end and must still see every part.
    """
    # sort by the fraction of its own list that comes before an item
    positions = []
    for number, items in enumerate(lists):
        total, seen = sum(size for size, _ in items), 0
        for index, (size, _) in enumerate(items):
            positions.append((seen / total, number, index))
            seen += size
    return [lists[number][index][1] for _, number, index in sorted(positions)]


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 of the documents, in order: resuming a run on other data is refused."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(_identity(document))
    return digest.hexdigest()


def tokenize(
    documents: Sequence[Document],
    tokenizer: "PreTrainedTokenizerBase",
    num_tokens: int | None = None,
) -> Iterator[list[int]]:
    """Yield each document's token ids, as ``chats.encode`` writes it.

    Stops after the document that reaches ``num_tokens``; None takes all documents.
    """
    total = 0
    for ids, _ in encode(documents, tokenizer):
        if num_tokens is not None and total >= num_tokens:
            return
        total += len(ids)
        yield list(ids)

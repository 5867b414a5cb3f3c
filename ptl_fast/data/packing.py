"""Packing: documents' token ids -> sequences of one length, and back into batches of documents.

Several documents share a sequence. Position ids restart at each, which is where transformers
separates them, so that attention stays inside a document.
"""

import bisect
import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ptl_fast.data.chats import marks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


IGNORED = -100  # label without a loss: cross_entropy's default ignore_index
# sequences that may still receive documents: more of them leave less padding, but move documents
# further from the order of the data
OPEN_SEQUENCES = 32
# fixed cost of a batch, in tokens; an estimate: one matrix product of SmolLM2's FFN has a fixed
# cost of 23 tokens on a CPU
BATCH_COST = 64


@dataclass(frozen=True)
class PackedTokens:
    """Sequences of packed documents, padded on the right. All tensors: (num_sequences, length)."""

    input_ids: "Tensor"
    """int64."""
    position_ids: "Tensor"
    """int64, 0 at each document's first token. It is 0 on every padding token too: each counts as a
    document of its own, so no other token attends to it.
    """
    mask: "Tensor"
    """bool, False on padding."""
    weights: "Tensor | None" = None
    """float32: how much each token counts in statistics, 1 on the mean and 0 where it does not;
    None: all count alike. Training takes no notice of it.
    """
    answers: "Tensor | None" = None
    """bool, True on answers' tokens (see ``ptl_fast.data.chats``); None: all tokens are answers."""
    count_answers: bool = False
    """Whether statistics count answers alone."""
    learn_answers: bool = False
    """Whether training learns answers alone."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int | slice) -> dict[str, "Tensor"]:
        """Training examples with input_ids, position_ids, labels and mask.

        Labels are not shifted (transformers shifts them). They are -100 on padding, on each
        document's first token, which would be predicted from the document before it, and with
        ``learn_answers`` outside answers. The mask is of the tokens that statistics count.
        """
        input_ids, position_ids = self.input_ids[index], self.position_ids[index]
        learnt = self._answers_if(self.learn_answers)[index]
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "labels": input_ids.where(learnt & (position_ids > 0), IGNORED),
            "mask": self.counted[index],
        }

    @property
    def num_tokens(self) -> int:
        """Number of tokens, without padding."""
        return int(self.mask.sum())

    @property
    def counted(self) -> "Tensor":
        """bool, True on the tokens that statistics count."""
        return self._answers_if(self.count_answers)

    @property
    def num_counted(self) -> int:
        """Number of tokens that statistics count."""
        return int(self.counted.sum())

    @property
    def teaches(self) -> "Tensor":
        """Which sequences have a label, (num_sequences,) bool."""
        return (self._answers_if(self.learn_answers) & (self.position_ids > 0)).any(1)

    def _answers_if(self, answers_alone: bool) -> "Tensor":
        """The mask of answers' tokens, or that of all."""
        return self.answers if answers_alone and self.answers is not None else self.mask

    def first(self, num_tokens: int) -> "PackedTokens":
        """The fewest first sequences that hold ``num_tokens`` tokens, or all of them."""
        # tokens in the sequences before each one
        before = self.mask.sum(1).cumsum(0) - self.mask.sum(1)
        return self.rows(before < num_tokens)

    def rows(self, chosen: "Tensor | slice") -> "PackedTokens":
        """Some of the sequences, chosen by indices, by a bool mask or by a slice."""
        return replace(
            self,
            input_ids=self.input_ids[chosen],
            position_ids=self.position_ids[chosen],
            mask=self.mask[chosen],
            answers=None if self.answers is None else self.answers[chosen],
            weights=None if self.weights is None else self.weights[chosen],
        )

    def unpacked(self, max_tokens: int) -> "list[PackedTokens]":
        """Batches with one document per row, longest first, cut so that padding costs least.

        A batch has at most ``max_tokens`` tokens with padding; a longer document is a batch of its
        own. Unlike in packed sequences, position ids count on through the padding: it lies to the
        right of the row's document, where causal attention does not look, so no mask is needed.
        """
        import torch

        # a document starts where a position of 0 is no padding; all indices below are into the
        # flattened tokens without padding
        tokens = self.mask.flatten().nonzero()[:, 0]
        starts = (self.position_ids.flatten()[tokens] == 0).nonzero()[:, 0]
        lengths, order = starts.diff(append=torch.tensor([len(tokens)])).sort(
            descending=True, stable=True
        )
        ids, batches = self.input_ids.flatten()[tokens], []
        weights = None if self.weights is None else self.weights.flatten()[tokens]
        answers = None if self.answers is None else self.answers.flatten()[tokens]
        for first, end in itertools.pairwise(_least_padding(lengths.tolist(), max_tokens)):
            positions = torch.arange(int(lengths[first])).expand(end - first, -1)
            mask = positions < lengths[first:end, None]
            # padding reads token 0 and is overwritten below, so that no index is out of range
            places = (starts[order[first:end], None] + positions).where(mask, 0)
            batch = replace(
                self,
                input_ids=ids[places].where(mask, 0),
                position_ids=positions,
                mask=mask,
                weights=None if weights is None else weights[places].where(mask, 0.0),
                answers=None if answers is None else answers[places] & mask,
            )
            batches.append(batch)
        return batches

    def followed_by(self, other: "PackedTokens") -> "PackedTokens":
        """These sequences, followed by the other's, which know their answers if these do; neither
        may have weights.
        """
        import torch

        names = ["input_ids", "position_ids", "mask"]
        names += [] if self.answers is None else ["answers"]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names
        }
        return replace(self, **joined)


def pack(
    documents: Iterable[Sequence[int]],
    length: int,
    pad: int,
    source: str = "the data",
    answers: Iterable[Sequence[int] | None] | None = None,
) -> PackedTokens:
    """Pack tokenized documents into sequences of ``length`` tokens (best-fit bin packing).

    Each document goes into the open sequence that it leaves with the least free space; at most
    OPEN_SEQUENCES are open. A document longer than ``length`` is cut into pieces, each of which
    counts as a document. Sequences are ordered by their first documents.

    Args:
        pad: token id on padding; it has no effect on any result.
        source: where the documents come from, for the error.
        answers: where each document's answers are, as in ``chats.Encoded``; None if nobody asks.

    Raises:
        ValueError: there are fewer tokens than one sequence holds.
    """
    import torch

    sequences: list[list[Sequence[int]]] = []
    # a byte a token, in the same places; empty if nobody asks
    marked: list[list[bytes]] = []
    # (free tokens, index), sorted, so that a binary search finds the best fit
    open_sequences: list[tuple[int, int]] = []
    num_tokens = 0
    for document, borders in zip(documents, answers or itertools.repeat(None), strict=False):
        num_tokens += len(document)
        own_marks = b"" if answers is None else marks(borders, len(document))
        for first in range(0, len(document), length):
            piece = document[first : first + length]
            place = bisect.bisect_left(open_sequences, (len(piece), 0))
            if place < len(open_sequences):
                free, index = open_sequences.pop(place)
            else:
                free, index = length, len(sequences)
                sequences.append([])
                marked.append([])
                # close the fullest: it is the least likely to fit another document
                if len(open_sequences) == OPEN_SEQUENCES:
                    del open_sequences[0]
            sequences[index].append(piece)
            marked[index].append(own_marks[first : first + length])
            bisect.insort(open_sequences, (free - len(piece), index))
    if num_tokens < length:
        raise ValueError(
            f"{source} has {num_tokens} tokens, less than one sequence of {length}; give more data"
            " or lower --sequence-length"
        )
    input_ids = torch.full((len(sequences), length), pad)
    position_ids = torch.zeros_like(input_ids)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    positions = torch.arange(length)
    for row, pieces in enumerate(sequences):
        # through array: torch reads nested lists several times slower
        flat = array("q", itertools.chain.from_iterable(pieces))
        input_ids[row, : len(flat)], mask[row, : len(flat)] = (
            torch.frombuffer(flat, dtype=torch.int64),
            True,
        )
        position_ids[row, : len(flat)] = torch.cat([positions[: len(piece)] for piece in pieces])
    if answers is None:
        return PackedTokens(input_ids, position_ids, mask)
    answered = torch.zeros_like(mask)
    for row, pieces_marks in enumerate(marked):
        joined = bytearray(b"".join(pieces_marks))
        answered[row, : len(joined)] = torch.frombuffer(joined, dtype=torch.bool)
    return PackedTokens(input_ids, position_ids, mask, answers=answered)


def _least_padding(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Split documents into consecutive batches at the least total cost, by dynamic programming.

    A batch is padded to its longest document and costs its tokens, padding included, plus
    BATCH_COST.

    Args:
        lengths: tokens per document, descending.
        max_tokens: of a batch with more than one document.

    Returns:
        The index at which each batch begins, ascending, and len(lengths) at the end.
    """
    import numpy as np

    # costs[end] is the least cost of the documents before ``end``, begins[end] the begin of the
    # last batch in that split, and ``first`` the earliest begin that max_tokens allows
    sizes, costs, begins = np.array(lengths), np.zeros(len(lengths) + 1, np.int64), [0]
    first = 0
    for end in range(1, len(lengths) + 1):
        while first < end - 1 and sizes[first] * (end - first) > max_tokens:
            first += 1
        options = costs[first:end] + sizes[first:end] * np.arange(end - first, 0, -1) + BATCH_COST
        begins.append(first + int(options.argmin()))
        costs[end] = options.min()
    # follow the best splits back from the end
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    return cuts[::-1]


def padding_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """A token id for padding. Any would do, as no other token attends to it and it has no loss."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id or 0

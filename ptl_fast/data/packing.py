"""Documents' token ids -> packed sequences, and the batches that they are unpacked into."""

import bisect
import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


IGNORED = -100
OPEN_SEQUENCES = 32
BATCH_COST = 64  # what a batch costs besides its tokens, in tokens, roughly: one product of SmolLM2's FFN costs 23 on a CPU


@dataclass(frozen=True)
class PackedTokens:
    """Sequences of documents, padded at the end. All three are (num_sequences, length).

    ``position_ids`` (int64) restart at each document; each padding token is a document of its own,
    so nothing attends to it. ``mask`` (bool) is False on padding.
    """

    input_ids: "Tensor"
    position_ids: "Tensor"
    mask: "Tensor"

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int | slice) -> dict[str, "Tensor"]:
        """One training example, or some, and the mask. No document's first token is predicted from
        the document before it.
        """
        input_ids, position_ids = self.input_ids[index], self.position_ids[index]
        labels = input_ids.where(self.mask[index] & (position_ids > 0), IGNORED)
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "labels": labels,
            "mask": self.mask[index],
        }

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.mask.sum())

    def first(self, num_tokens: int) -> "PackedTokens":
        """The first sequences that hold ``num_tokens`` tokens together, or all."""
        before = self.mask.sum(1).cumsum(0) - self.mask.sum(1)
        return self.rows(before < num_tokens)

    def rows(self, chosen: "Tensor | slice") -> "PackedTokens":
        """Some of the sequences, by index or by mask."""
        return PackedTokens(self.input_ids[chosen], self.position_ids[chosen], self.mask[chosen])

    def unpacked(self, max_tokens: int) -> "list[PackedTokens]":
        """The documents, a row each, longest first, in batches of like lengths with at most
        ``max_tokens``, padding included.

        Here padding continues its row, so that causal attention needs no mask: no document sees
        what comes after it. A document longer than ``max_tokens`` is a batch of its own.
        """
        import torch

        tokens = self.mask.flatten().nonzero()[:, 0]
        starts = (self.position_ids.flatten()[tokens] == 0).nonzero()[:, 0]
        lengths, order = starts.diff(append=torch.tensor([len(tokens)])).sort(
            descending=True, stable=True
        )
        ids, batches = self.input_ids.flatten()[tokens], []
        for first, end in itertools.pairwise(_least_padding(lengths.tolist(), max_tokens)):
            positions = torch.arange(int(lengths[first])).expand(end - first, -1)
            mask = positions < lengths[first:end, None]
            places = (starts[order[first:end], None] + positions).where(mask, 0)
            batches.append(PackedTokens(ids[places].where(mask, 0), positions, mask))
        return batches

    def followed_by(self, other: "PackedTokens") -> "PackedTokens":
        """These sequences and then the other's."""
        import torch

        names = ("input_ids", "position_ids", "mask")
        return PackedTokens(
            *(torch.cat([getattr(self, name), getattr(other, name)]) for name in names)
        )


def pack(
    documents: Iterable[Sequence[int]], length: int, pad: int, source: str = "the data"
) -> PackedTokens:
    """Pack tokenized documents into sequences of ``length`` tokens: each goes into the fullest open
    sequence where it fits.

    Documents longer than ``length`` are cut into pieces. Sequences keep the order of their first
    documents.

    Raises:
        ValueError: there are fewer tokens than one sequence holds.
    """
    import torch

    sequences: list[list[Sequence[int]]] = []
    open_sequences: list[tuple[int, int]] = []  # (free tokens, index), in order
    num_tokens = 0
    for document in documents:
        num_tokens += len(document)
        for first in range(0, len(document), length):
            piece = document[first : first + length]
            place = bisect.bisect_left(open_sequences, (len(piece), 0))
            if place < len(open_sequences):
                free, index = open_sequences.pop(place)
            else:
                free, index = length, len(sequences)
                sequences.append([])
                if len(open_sequences) == OPEN_SEQUENCES:
                    del open_sequences[0]
            sequences[index].append(piece)
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
        flat = array("q", itertools.chain.from_iterable(pieces))
        input_ids[row, : len(flat)], mask[row, : len(flat)] = (
            torch.frombuffer(flat, dtype=torch.int64),
            True,
        )
        position_ids[row, : len(flat)] = torch.cat([positions[: len(piece)] for piece in pieces])
    return PackedTokens(input_ids, position_ids, mask)


def _least_padding(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Where to cut lengths, in descending order, into batches padded to their first: the cheapest
    of all ways.

    Returns the index at which each batch begins, and the end. A batch costs its tokens, padding
    included, and BATCH_COST."""
    import numpy as np

    sizes, costs, begins = np.array(lengths), np.zeros(len(lengths) + 1, np.int64), [0]
    first = 0
    for end in range(1, len(lengths) + 1):
        while first < end - 1 and sizes[first] * (end - first) > max_tokens:
            first += 1
        options = costs[first:end] + sizes[first:end] * np.arange(end - first, 0, -1) + BATCH_COST
        begins.append(first + int(options.argmin()))
        costs[end] = options.min()
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    return cuts[::-1]


def padding_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """A token id for padding; what it is does not matter, for nothing attends to it."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id or 0

"""Packed tokens -> the batches that a model is given: the one place where batches are made.

Two layouts. *Documents*: each document gets its own row, padded to its batch's longest; for passes
that look at one token at a time, such as calibration. *Sequences*: the packed rows as they are,
several documents in each; for training and for what must lie as training has it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ptl_fast.base import distributed
from ptl_fast.model.families import needs_one_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens


class Batch(NamedTuple):
    """What one forward pass needs, on the model's device."""

    inputs: dict[str, Tensor]
    """input_ids and position_ids, (rows, length)."""
    labels: Tensor
    """(rows, length): the token to predict, -100 where none is."""
    mask: Tensor
    """(rows, length) bool: False on padding."""


def document_batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int, description: str
) -> Iterator[Batch]:
    """Yield every world_size-th batch, this rank's share, with a progress bar.

    A batch has at most as many tokens as ``batch_size`` packed sequences. Variable-length attention
    (flash-attention) reads the packed sequences as they are. Without it each document gets its own
    row: SDPA would compute scores across documents only to mask them.
    """
    if needs_one_row(model):
        arranged = [
            tokens.rows(slice(first, first + batch_size))
            for first in range(0, len(tokens), batch_size)
        ]
    else:
        arranged = tokens.unpacked(batch_size * tokens.input_ids.shape[1])
    mine = arranged[distributed.rank() :: distributed.world_size()]
    for rows in tqdm(mine, desc=description, disable=not distributed.is_main(), leave=False):
        yield _batch(model, rows)


def sequence_batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int
) -> Iterator[Batch]:
    """Yield all packed sequences in their order, ``batch_size`` at a time."""
    for first in range(0, len(tokens), batch_size):
        yield _batch(model, tokens.rows(slice(first, first + batch_size)))


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Token ids as one tensor, (num_rows, longest), filled up with ``pad`` on the right.

    Under a causal mask no token sees what is on its right, so padding needs no mask.
    """
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=pad
    )


def collator(model: "PreTrainedModel") -> Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]:
    """The function that makes one batch of training examples, in the layout that attention wants."""
    return one_row if needs_one_row(model) else stack


def stack(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A row an example."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def one_row(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All examples in one row: flash-attention finds documents where positions restart."""
    return {
        name: torch.cat([example[name] for example in examples]).unsqueeze(0)
        for name in examples[0]
    }


def _batch(model: "PreTrainedModel", rows: "PackedTokens") -> Batch:
    batch = {name: tensor.to(model.device) for name, tensor in rows[:].items()}
    mask = batch.pop("mask")
    if needs_one_row(model):
        batch = {name: tensor.view(1, -1) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    return Batch(batch, labels, mask)

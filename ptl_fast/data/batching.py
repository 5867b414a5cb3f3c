"""Make batches from packed tokens: the inputs, labels and mask of one forward pass.

There are two layouts. In *document* batches each document has its own row, padded to the longest of
its batch; they are for passes that treat tokens one by one, such as calibration. *Sequence* batches
are the packed sequences as they are, several documents in each; they are for training, and for
passes whose tokens must lie where training has them, such as a teacher's.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress
from ptl_fast.model.families import needs_one_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens


class Batch(NamedTuple):
    """The tensors of one forward pass, on the model's device."""

    inputs: dict[str, Tensor]
    """input_ids and position_ids, (rows, length) int64; positions restart at each document."""
    labels: Tensor
    """(rows, length) int64: input_ids, with -100 where a token is not to be predicted. They are not
    shifted, which transformers does in the loss.
    """
    mask: Tensor
    """(rows, length) bool: False on padding. It keeps its rows where the others become one row."""
    weights: Tensor | None = None
    """(rows, length) float32: the tokens' weights, if they have any; its rows are those of mask."""


def document_batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int, description: str
) -> Iterator[Batch]:
    """Yield this rank's share of the document batches: every world_size-th one.

    A batch has at most as many tokens as ``batch_size`` packed sequences. Variable-length attention
    (flash-attention) reads the packed sequences as they are. Without it each document gets its own
    row: SDPA would compute scores across documents only to mask them.

    Args:
        description: label of the progress bar, which the main rank shows.
    """
    if needs_one_row(model):
        arranged = [
            tokens.rows(slice(first, first + batch_size))
            for first in range(0, len(tokens), batch_size)
        ]
    else:
        arranged = tokens.unpacked(batch_size * tokens.input_ids.shape[1])
    # strided, not in blocks: ranks get as many batches each, to within one
    mine = arranged[distributed.rank() :: distributed.world_size()]
    for rows in progress(mine, description):
        yield _batch(model, rows)


def sequence_batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int
) -> Iterator[Batch]:
    """Yield all packed sequences in their order, ``batch_size`` at a time, on every rank."""
    # not divided among ranks: callers give each rank the sequences that it should read
    for first in range(0, len(tokens), batch_size):
        yield _batch(model, tokens.rows(slice(first, first + batch_size)))


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return token ids as one tensor, (num_rows, longest), padded with ``pad`` on the right.

    Under a causal mask no token attends to what is on its right, so padding needs no mask.
    """
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=pad
    )


def collator(model: "PreTrainedModel") -> Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]:
    """Return the data collator for training: ``one_row`` with flash-attention, else ``stack``."""
    return one_row if needs_one_row(model) else stack


def stack(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate examples into a batch with one row per example."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def one_row(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate examples into one row: flash-attention finds documents where positions restart."""
    return {
        name: torch.cat([example[name] for example in examples]).unsqueeze(0)
        for name in examples[0]
    }


def _batch(model: "PreTrainedModel", rows: "PackedTokens") -> Batch:
    """Move rows to the model's device, in the layout that its attention needs."""
    batch = {name: tensor.to(model.device) for name, tensor in rows[:].items()}
    mask = batch.pop("mask")
    # the mask keeps its rows: it is only read in flat order
    if needs_one_row(model):
        batch = {name: tensor.view(1, -1) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    weights = None if rows.weights is None else rows.weights.to(model.device)
    return Batch(batch, labels, mask, weights)

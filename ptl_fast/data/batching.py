"""A pass over packed tokens: the batches of this rank, as the model wants them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm.auto import tqdm

from ptl_fast.base import distributed
from ptl_fast.model.families import needs_one_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens


def batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int, description: str
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Yield (the model's arguments, labels, mask) of every world_size-th batch, on the model's
    device, with a progress bar.

    A batch has at most as many tokens as ``batch_size`` sequences. Unless attention is of the kind
    that knows documents' borders,
    documents have rows of their own: between those of one sequence it would compute every pair of
    tokens, only to mask it."""
    if needs_one_row(model):
        arranged = [
            tokens.rows(slice(first, first + batch_size))
            for first in range(0, len(tokens), batch_size)
        ]
    else:
        arranged = tokens.unpacked(batch_size * tokens.input_ids.shape[1])
    mine = arranged[distributed.rank() :: distributed.world_size()]
    for rows in tqdm(mine, desc=description, disable=not distributed.is_main(), leave=False):
        batch = {name: tensor.to(model.device) for name, tensor in rows[:].items()}
        mask = batch.pop("mask")
        if needs_one_row(model):
            batch = {name: tensor.view(1, -1) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        yield batch, labels, mask

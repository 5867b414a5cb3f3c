"""A pass over packed tokens: the batches of this rank, as the model wants them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm.auto import tqdm

from ptl_fast import ranks
from ptl_fast.families import needs_one_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data import PackedTokens


def batches(
    model: "PreTrainedModel", tokens: "PackedTokens", batch_size: int, description: str
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Yield (the model's arguments, labels, mask) of every world_size-th batch, on the model's device, with a progress bar."""
    mine = range(0, len(tokens), batch_size)[ranks.rank() :: ranks.world_size()]
    for first in tqdm(mine, desc=description, disable=not ranks.is_main(), leave=False):
        batch = {name: tensor.to(model.device) for name, tensor in tokens[first : first + batch_size].items()}
        mask = batch.pop("mask")
        if needs_one_row(model):
            batch = {name: tensor.view(1, -1) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        yield batch, labels, mask

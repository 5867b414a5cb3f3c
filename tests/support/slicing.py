"""Models sliced by principal axes of small random data."""

import torch
from transformers import PreTrainedModel

from ptl_fast.baselines.slicing import rotate_and_slice
from ptl_fast.data.packing import PackedTokens


def packed(num_sequences: int = 20, length: int = 24, seed: int = 3) -> PackedTokens:
    """Two documents a row, of 13 tokens and the rest; the last two tokens are padding."""
    input_ids = torch.randint(
        2, 384, (num_sequences, length), generator=torch.Generator().manual_seed(seed)
    )
    position_ids = (torch.arange(length) % 13).repeat(num_sequences, 1)
    position_ids[:, -2:] = 0
    mask = torch.ones(num_sequences, length, dtype=torch.bool)
    mask[:, -2:] = False
    return PackedTokens(input_ids, position_ids, mask)


def sliced(
    model: PreTrainedModel, size: int, tokens: PackedTokens | None = None
) -> PreTrainedModel:
    return rotate_and_slice(model, tokens or packed(), size, 8)[0]


def logits(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids).logits

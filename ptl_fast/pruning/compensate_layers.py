"""Compensate for dropped layers: fold what they did into the down projection before them.

A block of consecutive layers goes. The down projection W of the last layer that stays before it
becomes W + X, where X brings the residual stream nearest (least squares) to what it was after the
block; ``scoring.dropped_blocks`` finds it. There are no new parameters.

Several blocks in one round are fitted independently, each to the residual stream and activations
of the model before any of them went: one pass serves all, and errors of earlier blocks are not
corrected by later ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptl_fast.model.families import DownProjection


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What becomes of one block of dropped layers; layers have their numbers before the round."""

    layers: list[int]
    """The block's layers, ascending and consecutive."""
    change_HI: Tensor | None = None
    """X, (hidden_size, width): what the down projection before the block changes by. None leaves
    the block uncompensated."""
    ridge: float | None = None
    """The least squares' ridge, as a fraction of the mean square of a neuron's activations."""
    made_up_for: float | None = None
    """Share of sum_t ||d[t]||^2, d what the block added to the residual stream, that X explains on
    tokens set aside."""
    reason: str | None = None
    """Why the block is left uncompensated."""

    def to_json(self) -> dict[str, Any]:
        """For the round's record: all but X, and ``into``, the layer whose FFN takes over."""
        return {
            "layers": self.layers,
            "into": None if self.reason is not None else self.layers[0] - 1,
            "ridge": self.ridge,
            "made_up_for": self.made_up_for,
            "reason": self.reason,
        }


def blocks_of(dropped_layers: Sequence[int]) -> list[list[int]]:
    """The dropped layers, ascending, in runs of consecutive ones."""
    blocks: list[list[int]] = []
    for layer in dropped_layers:
        if blocks and layer == blocks[-1][-1] + 1:
            blocks[-1].append(layer)
        else:
            blocks.append([layer])
    return blocks


def ends(block: Sequence[int]) -> tuple[int, int]:
    """(layer before the block, its last layer); the former is -1 if the block begins the model."""
    return block[0] - 1, block[-1]


@torch.no_grad()
def fold_(downs: Sequence[DownProjection], folds: Sequence[Fold]) -> None:
    """Change, in place, the down projection before each block. The blocks are not removed here.

    Args:
        downs: every layer's down projection, in order.
    """
    for fold in folds:
        if fold.change_HI is not None:
            weight = downs[fold.layers[0] - 1].weight_HI
            # added in fp64: X is small beside W in half precision
            weight.copy_(weight.double() + fold.change_HI)

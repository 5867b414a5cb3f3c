"""A penalty on the neurons that the next round will remove, so that what they know moves elsewhere
before they go.

The idea is DReSS's (arXiv 2501.17905): choose, regularise, prune what was regularised, train.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptl_fast.model.families import Family, feed_forwards
from ptl_kernels import GatedFfn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def penalty(
    model: "PreTrainedModel", family: Family, kept_neurons: list[list[int]] | None, weight: float
) -> Callable[[], Tensor] | None:
    """Return the function that computes weight * sum_j ||w_j||_2 over the neurons j that the next
    round removes; None if it removes none.

    ``kept_neurons`` are the indices, per layer, of those that stay; None where all do.

    w_j is all that belongs to neuron j: its rows of gate and up and its column of down (group
    lasso: a neuron shrinks as a whole, by ``weight`` times the learning rate a step under plain
    gradient descent, however large it is).
    """
    if kept_neurons is None:
        return None
    pairs = []
    for ffn, kept in zip(feed_forwards(model, family).values(), kept_neurons, strict=True):
        removed = torch.ones(ffn.width, dtype=torch.bool)
        removed[kept] = False
        pairs.append((ffn, removed.nonzero().squeeze(1).to(ffn.down.weight.device)))
    return partial(_weighted_norms, pairs, weight)


def _weighted_norms(pairs: list[tuple[GatedFfn, Tensor]], weight: float) -> Tensor:
    return weight * torch.stack([_norms(ffn, removed).sum() for ffn, removed in pairs]).sum()


def _norms(ffn: GatedFfn, neurons_K: Tensor) -> Tensor:
    """The L2 norm of each of these neurons' weights."""
    places = [neurons_K, neurons_K + ffn.width] if ffn.fused else [neurons_K]
    rows = [linear.weight.index_select(0, place) for linear in ffn.inputs for place in places]
    columns = ffn.down.weight.index_select(1, neurons_K).t()
    return torch.linalg.vector_norm(torch.cat([*rows, columns], dim=1).float(), dim=1)

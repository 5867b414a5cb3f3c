"""Group-lasso penalty on the neurons that the next round will remove (--anticipate).

It shrinks them while the model still trains, so that the remaining weights take over what they
compute. The idea is DReSS's (arXiv 2501.17905): choose, regularise, prune what was regularised,
train.

Shape suffix: K neurons.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptl_fast.model.families import Family, feed_forwards
from ptl_kernels import Ffn, matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def penalty(
    model: "PreTrainedModel", family: Family, kept_neurons: list[list[int]] | None, weight: float
) -> Callable[[], Tensor] | None:
    """Return a function that computes weight * sum_j ||w_j||_2, to add to the loss.

    j runs over the neurons of all layers that the next round removes, and w_j is neuron j's rows
    of gate_proj and up_proj and its column of down_proj. The norm is not squared (group lasso), so
    a neuron shrinks as a whole, and under plain gradient descent by learning rate times ``weight``
    a step, however large it is.

    Args:
        kept_neurons: per layer, the indices of the neurons that stay; None if the next round
            removes no neurons, which makes the result None.
        weight: the penalty's factor.
    """
    if kept_neurons is None:
        return None
    pairs = []
    for ffn, kept in zip(feed_forwards(model, family).values(), kept_neurons, strict=True):
        removed = torch.ones(ffn.width, dtype=torch.bool)
        removed[kept] = False
        pairs.append((ffn, removed.nonzero().squeeze(1).to(ffn.down.weight.device)))
    return partial(_weighted_norms, pairs, weight)


def _weighted_norms(pairs: list[tuple[Ffn, Tensor]], weight: float) -> Tensor:
    return weight * torch.stack([_norms(ffn, removed).sum() for ffn, removed in pairs]).sum()


def _norms(ffn: Ffn, neurons_K: Tensor) -> Tensor:
    """Return the L2 norm of each of these neurons' weights, (K,) float32."""
    # a fused projection holds gate's rows and then up's
    places = [neurons_K, neurons_K + ffn.width] if ffn.fused else [neurons_K]
    rows = [matrix(linear).index_select(0, place) for linear in ffn.inputs for place in places]
    columns = matrix(ffn.down).index_select(1, neurons_K).t()
    # float32: the sum over all neurons needs more digits than bf16 has
    return torch.linalg.vector_norm(torch.cat([*rows, columns], dim=1).float(), dim=1)

"""Statistics and weights -> the importance of each neuron or layer; the smallest go first.

Shape suffixes: L layers, I FFN width.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptl_fast.families import Family, feed_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.calibrate import Statistics


def activation(statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int) -> Tensor:
    """score[l, i] = sqrt(sum_t a[t, i]^2): Eq. 4 of arXiv 2602.04919."""
    return statistics.square_LI.sqrt()


def output_change(statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int) -> Tensor:
    """score[l, i] = sqrt(sum_t a[t, i]^2) * ||W_down[:, i]||: the change of the FFN's output without neuron i (Eq. 2)."""
    norms = [_norm(feed_forward.down.weight, dim=0) for feed_forward in feed_forwards(model, family).values()]
    return statistics.square_LI.sqrt() * torch.stack(norms)


def magnitude(statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int) -> Tensor:
    """score[l, i] = L2 norm of all weights of neuron i: its rows of gate and up, its column of down."""
    scores = []
    for feed_forward in feed_forwards(model, family).values():
        rows = [_norm(linear.weight, dim=1) for linear in feed_forward.inputs]
        if feed_forward.fused:
            rows = list(rows[0].chunk(2))
        scores.append(torch.stack([*rows, _norm(feed_forward.down.weight, dim=0)]).square().sum(0).sqrt())
    return torch.stack(scores)


def random(statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int) -> Tensor:
    """Uniform noise: the baseline that every scorer must beat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(statistics.square_LI.shape, dtype=torch.float64, generator=generator)


def residual(statistics: "Statistics") -> Tensor:
    """score[l] = mean over tokens of ||h_l - h_{l-1}||: Eq. 5 of arXiv 2602.04919."""
    return statistics.change_L3[:, 0] / statistics.num_tokens


def block_influence(statistics: "Statistics") -> Tensor:
    """score[l] = 1 - mean over tokens of cosine(h_{l-1}, h_l): ShortGPT, arXiv 2403.03853."""
    return 1 - statistics.change_L3[:, 2] / statistics.num_tokens


def last(statistics: "Statistics") -> Tensor:
    """Deeper layers score lower, so the last ones go first."""
    return -torch.arange(len(statistics.change_L3), dtype=torch.float64)


SCORERS = {"activation": activation, "output-change": output_change, "magnitude": magnitude, "random": random}
LAYER_SCORERS = {"residual": residual, "block-influence": block_influence, "last": last}


def _norm(weight: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(weight.detach().double(), dim=dim).cpu()

"""Statistics and weights -> the importance of each neuron or layer; the smallest go first.

Shape suffixes: L layers, I FFN width.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptl_fast.model.families import Family, feed_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.scoring.statistics import Extra, Statistics


def activation(
    statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int
) -> Tensor:
    """score[l, i] = sqrt(sum_t a[t, i]^2): Eq. 4 of arXiv 2602.04919."""
    return statistics.square_LI.sqrt()


def output_change(
    statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int
) -> Tensor:
    """score[l, i] = sqrt(sum_t a[t, i]^2) * ||W_down[:, i]||: the change of the FFN's output
    without neuron i (Eq. 2).
    """
    return statistics.square_LI.sqrt() * _down_norms(model, family)


def reconstruction(
    statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int
) -> Tensor:
    """score[l, i] = how far the FFN's output is at best from what it was, without i and all that
    score lower (Eq. 2, for sets).
    """
    assert statistics.price_LI is not None
    return (
        statistics.price_LI.clone()
    )  # both are written, and safetensors refuses two names of one memory


def magnitude(
    statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int
) -> Tensor:
    """score[l, i] = L2 norm of all weights of neuron i: its rows of gate and up, its column of
    down.
    """
    scores = []
    for feed_forward in feed_forwards(model, family).values():
        rows = [_norm(linear.weight, dim=1) for linear in feed_forward.inputs]
        if feed_forward.fused:
            rows = list(rows[0].chunk(2))
        scores.append(
            torch.stack([*rows, _norm(feed_forward.down.weight, dim=0)]).square().sum(0).sqrt()
        )
    return torch.stack(scores)


def fluctuation(
    statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int
) -> Tensor:
    """score[l, i] = var_t(a[t, i]) * ||W_down[:, i]||^2: what a bias in neuron i's place could not
    restore.

    The fluctuation metric of FLAP (arXiv 2312.11983), with the sample variance over tokens: (sum
    a^2 - (sum a)^2 / T) / (T - 1)."""
    assert statistics.sum_LI is not None
    num_tokens = int(statistics.num_tokens)
    deviation_LI = statistics.square_LI - statistics.sum_LI.square() / num_tokens
    return deviation_LI.clamp_min(0) / max(num_tokens - 1, 1) * _down_norms(model, family).square()


def gradient(
    statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int
) -> Tensor:
    """score[l, i] = sum_t |a[t, i] * dL/da[t, i]|: how much silencing neuron i changes the loss, to
    first order, token by token.

    L is the mean loss of the corpus's predicted tokens (each document's first token is not
    predicted), as in recovery's training. The first-order Taylor criterion of arXiv 1611.06440,
    with the magnitude taken before the sum, so that tokens do not cancel."""
    assert statistics.gradient_LI is not None
    assert statistics.num_predicted is not None
    return statistics.gradient_LI / statistics.num_predicted


def reference(
    statistics: "Statistics", model: "PreTrainedModel", family: Family, seed: int
) -> Tensor:
    """A baseline: the authors' published rule deletes what it selects in index order, so score[l,
    i] = i.

    Neurons that it did not select score width + i: where it selected fewer than a round removes,
    the lowest indices of the rest go."""
    assert statistics.selected_LI is not None
    width = statistics.selected_LI.shape[1]
    return torch.arange(width, dtype=torch.float64) + width * ~statistics.selected_LI


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


def angular(statistics: "Statistics") -> Tensor:
    """score[l] = mean over tokens of arccos(cosine(h_{l-1}, h_l)) / pi: arXiv 2403.17887.

    That paper reads the last token of each sequence and drops one block of consecutive layers; here
    every token counts, and layers go one by one. With one layer a round this is its block of one,
    found anew after each recovery.
    """
    assert statistics.angle_L is not None
    return statistics.angle_L / statistics.num_tokens


def last(statistics: "Statistics") -> Tensor:
    """Deeper layers score lower, so the last ones go first."""
    return -torch.arange(len(statistics.change_L3), dtype=torch.float64)


SCORERS = {
    "reconstruction": reconstruction,
    "activation": activation,
    "output-change": output_change,
    "fluctuation": fluctuation,
    "gradient": gradient,
    "magnitude": magnitude,
    "reference": reference,
    "random": random,
}
LAYER_SCORERS = {
    "residual": residual,
    "block-influence": block_influence,
    "angular": angular,
    "last": last,
}
# What ptl_fast.scoring.statistics must take besides squares and changes.
EXTRA: "dict[str, frozenset[Extra]]" = {
    "fluctuation": frozenset({"sums"}),
    "gradient": frozenset({"gradients"}),
    "angular": frozenset({"angles"}),
}
GROWS_WITH_TOKENS = frozenset(
    {"reconstruction", "activation", "output-change"}
)  # roots of sums over tokens


def per_token(scorer: str, scores_LI: Tensor, num_tokens: Tensor) -> Tensor:
    """Scores that do not grow with the corpus, so that one threshold serves any: root mean squares
    instead of roots of sums.

    Eq. 4 compares the L2 norm over T tokens with sigma; that is the same as comparing this with
    sigma / sqrt(T).
    """
    return scores_LI / num_tokens.sqrt() if scorer in GROWS_WITH_TOKENS else scores_LI


def _down_norms(model: "PreTrainedModel", family: Family) -> Tensor:
    """||W_down[:, i]||, (num_layers, width)."""
    return torch.stack(
        [
            _norm(feed_forward.down.weight, dim=0)
            for feed_forward in feed_forwards(model, family).values()
        ]
    )


def _norm(weight: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(weight.detach().double(), dim=dim).cpu()

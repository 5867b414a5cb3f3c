"""Scorers: functions from statistics and weights to the importance of each neuron or layer.

What scores lowest is removed first. A new scorer is one function and one entry in SCORERS (or
LAYER_SCORERS). torch is imported inside the functions: a dry run reads the dicts and must not
spend seconds on the import.

In the formulas, a[t, i] is the activation of neuron i at token t, the input of the down projection
W_down, and h_l the residual stream after layer l. Equations are those of arXiv 2602.04919.

Shape suffixes: L layers, I FFN width.
"""

from typing import TYPE_CHECKING

from ptl_fast.model.families import feed_forwards
from ptl_fast.scoring import reconstruction
from ptl_fast.scoring.evidence import Evidence, LayerScorer, Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.scoring.statistics import Statistics


def activation(evidence: Evidence) -> "Tensor":
    """score[l, i] = sqrt(sum_t a[t, i]^2): the L2 norm of the neuron's activations (Eq. 4)."""
    return evidence.statistics.square_LI.sqrt()


def output_change(evidence: Evidence) -> "Tensor":
    """score[l, i] = sqrt(sum_t a[t, i]^2) * ||W_down[:, i]||.

    The L2 norm, over all tokens, of what the FFN's output loses without neuron i (Eq. 2).
    """
    return evidence.statistics.square_LI.sqrt() * _down_norms(evidence)


def magnitude(evidence: Evidence) -> "Tensor":
    """score[l, i] = L2 norm of neuron i's weights: its rows of gate and up, its column of down."""
    import torch

    from ptl_kernels import matrix

    scores = []
    for ffn in feed_forwards(evidence.model, evidence.family).values():
        # a neuron is a row of gate and of up, and a column of down
        rows = [_norm(matrix(linear), dim=1) for linear in ffn.inputs]
        # one weight matrix holds gate's rows above up's
        if ffn.fused:
            rows = list(rows[0].chunk(2))
        parts = torch.stack([*rows, _norm(matrix(ffn.down), dim=0)])
        scores.append(parts.square().sum(0).sqrt())
    return torch.stack(scores)


def fluctuation(evidence: Evidence) -> "Tensor":
    """score[l, i] = var_t(a[t, i]) * ||W_down[:, i]||^2: FLAP's fluctuation, arXiv 2312.11983.

    This is what a constant bias in neuron i's place could not restore.
    """
    statistics = evidence.statistics
    assert statistics.sum_LI is not None
    num_tokens = int(statistics.num_tokens)
    # sample variance over T tokens: (sum a^2 - (sum a)^2 / T) / (T - 1)
    deviation_LI = statistics.square_LI - statistics.sum_LI.square() / num_tokens
    # rounding can leave a variance of zero slightly negative
    return deviation_LI.clamp_min(0) / max(num_tokens - 1, 1) * _down_norms(evidence).square()


def gradient(evidence: Evidence) -> "Tensor":
    """score[l, i] = sum_t |a[t, i] * dL/da[t, i]|: first-order change of the loss without neuron i.

    L is the mean loss over the corpus's predicted tokens, as in recovery's training; a document's
    first token is not predicted. This is the Taylor criterion of arXiv 1611.06440, with absolute
    values taken before the sum, so that tokens do not cancel.
    """
    statistics = evidence.statistics
    assert statistics.gradient_LI is not None
    assert statistics.num_predicted is not None
    # collected with the sum of the tokens' losses, which does not depend on the batches
    return statistics.gradient_LI / statistics.num_predicted


def random(evidence: Evidence) -> "Tensor":
    """score[l, i] ~ uniform in [0, 1): the baseline that every scorer must beat."""
    import torch

    # a generator of its own, on the CPU: the same scores on any device and after a resume
    generator = torch.Generator().manual_seed(evidence.seed)
    shape = evidence.statistics.square_LI.shape
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def residual(statistics: "Statistics") -> "Tensor":
    """score[l] = mean over tokens of ||h_l - h_{l-1}|| (Eq. 5)."""
    # change_L3 holds sums over tokens; column 0 is the norm of the change
    return statistics.change_L3[:, 0] / statistics.num_tokens


def block_influence(statistics: "Statistics") -> "Tensor":
    """score[l] = 1 - mean over tokens of cosine(h_{l-1}, h_l): ShortGPT, arXiv 2403.03853."""
    # column 2 is the cosine
    return 1 - statistics.change_L3[:, 2] / statistics.num_tokens


def angular(statistics: "Statistics") -> "Tensor":
    """score[l] = mean over tokens of arccos(cosine(h_{l-1}, h_l)) / pi: arXiv 2403.17887.

    The paper takes each sequence's last token, and drops one block of consecutive layers. Here all
    tokens count, and layers are scored one by one; with one layer per round, this is the paper's
    block of size one, chosen anew after each recovery.
    """
    assert statistics.angle_L is not None
    return statistics.angle_L / statistics.num_tokens


def last(statistics: "Statistics") -> "Tensor":
    """score[l] = -l: the deepest layer is removed first."""
    import torch

    return -torch.arange(len(statistics.change_L3), dtype=torch.float64)


# the names are the values of --scorer and --layer-scorer; nothing else compares them
SCORERS = {
    "reconstruction": Scorer(
        compute=reconstruction.score,
        reads_grams=True,
        grows_with_tokens=True,
        reads_protected=True,
        weighs_tokens=True,
    ),
    "activation": Scorer(compute=activation, grows_with_tokens=True, weighs_tokens=True),
    "output-change": Scorer(compute=output_change, grows_with_tokens=True, weighs_tokens=True),
    "fluctuation": Scorer(compute=fluctuation, needs=frozenset({"sums"}), weighs_tokens=True),
    "gradient": Scorer(compute=gradient, needs=frozenset({"gradients"})),
    "magnitude": Scorer(compute=magnitude),
    "random": Scorer(compute=random, measures=False),
}
LAYER_SCORERS = {
    "residual": LayerScorer(compute=residual),
    "block-influence": LayerScorer(compute=block_influence),
    "angular": LayerScorer(compute=angular, needs=frozenset({"angles"})),
    "last": LayerScorer(compute=last),
}


def _down_norms(evidence: Evidence) -> "Tensor":
    """||W_down[:, i]||, (num_layers, width) fp64 on the CPU."""
    import torch

    from ptl_kernels import matrix

    ffns = feed_forwards(evidence.model, evidence.family).values()
    return torch.stack([_norm(matrix(ffn.down), dim=0) for ffn in ffns])


def _norm(weight: "Tensor", dim: int) -> "Tensor":
    """L2 norms along ``dim``, fp64 on the CPU like the statistics."""
    import torch

    # fp64 before the sum: squares of bf16 weights lose digits in their own precision
    return torch.linalg.vector_norm(weight.detach().double(), dim=dim).cpu()

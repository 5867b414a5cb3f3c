"""Scorers: functions from statistics and weights to the importance of each neuron or layer.

What scores lowest is removed first. A new scorer is one function and one entry in SCORERS (or
LAYER_SCORERS). torch is imported inside the functions: a dry run reads the dicts and must not
spend seconds on the import.

In the formulas, a[t, i] is the activation of neuron i at token t, the input of the down projection
W_down, and h_l the residual stream after layer l. Equations are those of arXiv 2602.04919.

Shape suffixes: L layers, I FFN width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptl_fast.model.families import Family, feed_forwards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ptl_fast.scoring.gram import GramMatrices
    from ptl_fast.scoring.statistics import Extra, Statistics


# statistics that forward passes of a training collect too
DURING_RECOVERY: "frozenset[Extra]" = frozenset({"sums", "angles"})


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Token ids of single documents, for a scorer that reads them one by one."""

    reasoning: Sequence[Sequence[int]]
    """Documents of the round's part of --data."""
    general: Sequence[Sequence[int]]
    """Documents of --protect."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The input of a neuron scorer."""

    statistics: "Statistics"
    model: "PreTrainedModel"
    family: Family
    seed: int
    """For scorers that draw random numbers."""
    grams: "GramMatrices | None" = None
    """Each layer's Gram matrix; not None if the scorer ``reads_grams``."""
    samples: Samples | None = None
    """Not None if the scorer ``reads_samples``."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A way of scoring neurons, and what it needs."""

    compute: "Callable[[Evidence], Tensor]"
    """Returns (num_layers, width) fp64 on the CPU; the lowest scores are removed first."""
    needs: "frozenset[Extra]" = field(default_factory=frozenset)
    """Statistics to collect besides squared activations and the layers' change of the residual."""
    reads_grams: bool = False
    """Whether it needs Gram matrices of the activations."""
    reads_samples: bool = False
    """Whether it runs single documents through the model itself."""
    grows_with_tokens: bool = False
    """Whether the score is a root of a sum over tokens, and so larger on a longer corpus."""
    reads_protected: bool = False
    """Whether it takes --protect's text into account itself. If not, the neurons that it ranks
    highest on that text are kept.
    """
    weighs_tokens: bool = False
    """Whether --token-weights changes it: it reads sums of squares, sums or Gram matrices."""
    measures: bool = True
    """Whether a threshold on the score has a meaning: it has none on random numbers or ranks."""
    redundant_below: float | None = None
    """Neurons with a lower score count as redundant by the scorer's own rule; None: it has none."""
    adds_bias: bool = False
    """Whether a bias of the down projection takes the place of what it removes (FLAP)."""

    @property
    def needs_own_pass(self) -> bool:
        """Whether it needs a calibration pass, as --score-during-recovery's statistics lack what it
        reads.
        """
        return bool(self.reads_grams or self.reads_samples or self.needs - DURING_RECOVERY)

    def per_token(self, scores_LI: "Tensor", num_tokens: "Tensor") -> "Tensor":
        """Scores that do not grow with the corpus, so that one --threshold fits any corpus.

        They are root mean squares instead of roots of sums. Comparing Eq. 4's L2 norm over T tokens
        with sigma is the same as comparing these with sigma / sqrt(T).
        """
        return scores_LI / num_tokens.sqrt() if self.grows_with_tokens else scores_LI


@dataclass(frozen=True, kw_only=True)
class LayerScorer:
    """A way of scoring decoder layers, and what it needs."""

    compute: "Callable[[Statistics], Tensor]"
    """Returns (num_layers,) fp64; the lowest scores are removed first."""
    needs: "frozenset[Extra]" = field(default_factory=frozenset)
    """As for Scorer."""


def activation(evidence: Evidence) -> "Tensor":
    """score[l, i] = sqrt(sum_t a[t, i]^2): the L2 norm of the neuron's activations (Eq. 4)."""
    return evidence.statistics.square_LI.sqrt()


def output_change(evidence: Evidence) -> "Tensor":
    """score[l, i] = sqrt(sum_t a[t, i]^2) * ||W_down[:, i]||.

    The L2 norm, over all tokens, of what the FFN's output loses without neuron i (Eq. 2).
    """
    return evidence.statistics.square_LI.sqrt() * _down_norms(evidence)


def reconstruction(evidence: Evidence) -> "Tensor":
    """score[l, i] = error of the FFN's output without i and all neurons that score lower.

    The error is Eq. 2's for a set of neurons, an L2 norm over all tokens, after the down projection
    of the other neurons was fitted anew by least squares.
    """
    from ptl_fast.scoring.reconstruction import prices

    assert evidence.grams is not None
    return prices(evidence.grams)


def magnitude(evidence: Evidence) -> "Tensor":
    """score[l, i] = L2 norm of neuron i's weights: its rows of gate and up, its column of down."""
    import torch

    scores = []
    for ffn in feed_forwards(evidence.model, evidence.family).values():
        # a neuron is a row of gate and of up, and a column of down
        rows = [_norm(linear.weight, dim=1) for linear in ffn.inputs]
        # one weight matrix holds gate's rows above up's
        if ffn.fused:
            rows = list(rows[0].chunk(2))
        parts = torch.stack([*rows, _norm(ffn.down.weight, dim=0)])
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
        compute=reconstruction,
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

    ffns = feed_forwards(evidence.model, evidence.family).values()
    return torch.stack([_norm(ffn.down.weight, dim=0) for ffn in ffns])


def _norm(weight: "Tensor", dim: int) -> "Tensor":
    """L2 norms along ``dim``, fp64 on the CPU like the statistics."""
    import torch

    # fp64 before the sum: squares of bf16 weights lose digits in their own precision
    return torch.linalg.vector_norm(weight.detach().double(), dim=dim).cpu()

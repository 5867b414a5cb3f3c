"""Statistics and weights -> the importance of each neuron or layer; the smallest go first.

A new scorer is one function and one entry in SCORERS (or LAYER_SCORERS). torch is imported where it
is needed, for a dry run reads the dicts and may not take seconds to start.

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


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Token ids of single documents, for a scorer that reads them one by one."""

    reasoning: Sequence[Sequence[int]]
    """Of the round's part of --data."""
    general: Sequence[Sequence[int]]
    """Of --protect."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a neuron scorer may look at."""

    statistics: "Statistics"
    model: "PreTrainedModel"
    family: Family
    seed: int
    """For scores that are drawn at random."""
    grams: "GramMatrices | None" = None
    """Where the scorer ``reads_grams``."""
    samples: Samples | None = None
    """Where the scorer ``reads_samples``."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """How neurons are ranked."""

    compute: "Callable[[Evidence], Tensor]"
    """-> (num_layers, width) fp64 on the CPU; the smallest go first."""
    needs: "frozenset[Extra]" = field(default_factory=frozenset)
    """What the calibration pass must take besides squares and changes."""
    reads_grams: bool = False
    reads_samples: bool = False
    grows_with_tokens: bool = False
    """The score is a root of a sum over tokens, so that a longer corpus gives larger ones."""
    reads_protected: bool = False
    """It looks at --protect's text itself; otherwise those that rank highest there are kept."""
    measures: bool = True
    """A threshold on it has a meaning: neither drawn at random nor a rank."""
    redundant_below: float | None = None
    """The rule itself calls neurons redundant that score below this; None where it calls none."""

    @property
    def needs_own_pass(self) -> bool:
        """Whether statistics that a recovery took on its way are not enough."""
        return bool(self.reads_grams or self.reads_samples or "gradients" in self.needs)

    def per_token(self, scores_LI: "Tensor", num_tokens: "Tensor") -> "Tensor":
        """Scores that do not grow with the corpus, so that one threshold serves any.

        Root mean squares instead of roots of sums: Eq. 4 compares the L2 norm over T tokens with
        sigma, which is the same as comparing this with sigma / sqrt(T).
        """
        return scores_LI / num_tokens.sqrt() if self.grows_with_tokens else scores_LI


@dataclass(frozen=True, kw_only=True)
class LayerScorer:
    """How whole decoder layers are ranked."""

    compute: "Callable[[Statistics], Tensor]"
    """-> (num_layers,) fp64; the smallest go first."""
    needs: "frozenset[Extra]" = field(default_factory=frozenset)


def activation(evidence: Evidence) -> "Tensor":
    """score[l, i] = sqrt(sum_t a[t, i]^2): Eq. 4 of arXiv 2602.04919."""
    return evidence.statistics.square_LI.sqrt()


def output_change(evidence: Evidence) -> "Tensor":
    """score[l, i] = sqrt(sum_t a[t, i]^2) * ||W_down[:, i]||: the change of the FFN's output
    without neuron i (Eq. 2).
    """
    return evidence.statistics.square_LI.sqrt() * _down_norms(evidence)


def reconstruction(evidence: Evidence) -> "Tensor":
    """score[l, i] = how far the FFN's output is at best from what it was, without i and all that
    score lower (Eq. 2, for sets of neurons).
    """
    from ptl_fast.scoring.reconstruction import prices

    assert evidence.grams is not None
    return prices(evidence.grams)


def magnitude(evidence: Evidence) -> "Tensor":
    """score[l, i] = L2 norm of all weights of neuron i: its rows of gate and up, its column of
    down.
    """
    import torch

    scores = []
    for ffn in feed_forwards(evidence.model, evidence.family).values():
        rows = [_norm(linear.weight, dim=1) for linear in ffn.inputs]
        if ffn.fused:  # one projection holds gate above up
            rows = list(rows[0].chunk(2))
        parts = torch.stack([*rows, _norm(ffn.down.weight, dim=0)])
        scores.append(parts.square().sum(0).sqrt())
    return torch.stack(scores)


def fluctuation(evidence: Evidence) -> "Tensor":
    """score[l, i] = var_t(a[t, i]) * ||W_down[:, i]||^2: what a bias in neuron i's place could not
    restore.

    The fluctuation metric of FLAP (arXiv 2312.11983), with the sample variance over tokens:
    (sum a^2 - (sum a)^2 / T) / (T - 1).
    """
    statistics = evidence.statistics
    assert statistics.sum_LI is not None
    num_tokens = int(statistics.num_tokens)
    deviation_LI = statistics.square_LI - statistics.sum_LI.square() / num_tokens
    # rounding can leave a variance of zero slightly negative
    return deviation_LI.clamp_min(0) / max(num_tokens - 1, 1) * _down_norms(evidence).square()


def gradient(evidence: Evidence) -> "Tensor":
    """score[l, i] = sum_t |a[t, i] * dL/da[t, i]|: how much silencing neuron i changes the loss, to
    first order, token by token.

    L is the mean loss of the corpus's predicted tokens (each document's first token is not
    predicted), as in recovery's training. The first-order Taylor criterion of arXiv 1611.06440,
    with the magnitude taken before the sum, so that tokens do not cancel.
    """
    statistics = evidence.statistics
    assert statistics.gradient_LI is not None
    assert statistics.num_predicted is not None
    return statistics.gradient_LI / statistics.num_predicted


def random(evidence: Evidence) -> "Tensor":
    """Uniform noise: the baseline that every scorer must beat."""
    import torch

    generator = torch.Generator().manual_seed(evidence.seed)
    shape = evidence.statistics.square_LI.shape
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def residual(statistics: "Statistics") -> "Tensor":
    """score[l] = mean over tokens of ||h_l - h_{l-1}||: Eq. 5 of arXiv 2602.04919."""
    return statistics.change_L3[:, 0] / statistics.num_tokens


def block_influence(statistics: "Statistics") -> "Tensor":
    """score[l] = 1 - mean over tokens of cosine(h_{l-1}, h_l): ShortGPT, arXiv 2403.03853."""
    return 1 - statistics.change_L3[:, 2] / statistics.num_tokens


def angular(statistics: "Statistics") -> "Tensor":
    """score[l] = mean over tokens of arccos(cosine(h_{l-1}, h_l)) / pi: arXiv 2403.17887.

    That paper reads the last token of each sequence and drops one block of consecutive layers; here
    every token counts, and layers go one by one. With one layer a round this is its block of one,
    found anew after each recovery.
    """
    assert statistics.angle_L is not None
    return statistics.angle_L / statistics.num_tokens


def last(statistics: "Statistics") -> "Tensor":
    """Deeper layers score lower, so the last ones go first."""
    import torch

    return -torch.arange(len(statistics.change_L3), dtype=torch.float64)


SCORERS = {
    "reconstruction": Scorer(
        compute=reconstruction, reads_grams=True, grows_with_tokens=True, reads_protected=True
    ),
    "activation": Scorer(compute=activation, grows_with_tokens=True),
    "output-change": Scorer(compute=output_change, grows_with_tokens=True),
    "fluctuation": Scorer(compute=fluctuation, needs=frozenset({"sums"})),
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
    """||W_down[:, i]||, (num_layers, width)."""
    import torch

    ffns = feed_forwards(evidence.model, evidence.family).values()
    return torch.stack([_norm(ffn.down.weight, dim=0) for ffn in ffns])


def _norm(weight: "Tensor", dim: int) -> "Tensor":
    import torch

    return torch.linalg.vector_norm(weight.detach().double(), dim=dim).cpu()

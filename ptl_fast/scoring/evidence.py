"""What a scorer is: a function of evidence, and what the rest of a run must know of it.

Shape suffixes: L layers, I FFN width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptl_fast.model.families import Family

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
    add_bias_: "Callable[..., None] | None" = None
    """Gives the down projections a bias in place of what is removed, before it is:
    (model, family, means_LI, kept_neurons), as ``baselines.flap.add_bias_``. None: no bias does.
    """

    @property
    def is_by_layer(self) -> bool:
        """Whether a layer's scores follow from that layer alone and what goes into it, with no
        random numbers, gradients or ranks over the model.
        """
        needs_more = self.needs & {"gradients", "weight_gradients"} or self.add_bias_ is not None
        return self.measures and not self.reads_samples and not needs_more

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

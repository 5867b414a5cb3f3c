"""How neurons, layers and experts are ranked."""

from dataclasses import dataclass
from typing import Literal

from ptl_fast.config.checking import check_at_least_one

RIDGE = 1e-4  # also where least squares are asked for without a run


@dataclass(kw_only=True)
class ScoreSettings:
    """How neurons, layers and experts are ranked."""

    scorer: str = "reconstruction"
    """Neuron importance: reconstruction (Eq. 2 for sets of neurons: how far the layer's output is
    at best from what it was without the neuron and all that score lower, when the others make up
    for them as --compensate lets them; a float64 matrix of width x width a layer, and where not all
    of them fit in memory, a pass over --calibration-tokens for as many as do), output-change (Eq.
    2: L2 norm of the activation times the norm of the down_proj column, which is what the neuron
    adds to the layer's output), activation (Eq. 4: without the column), fluctuation (FLAP: variance
    of the activation times the column's squared norm), gradient (first-order Taylor: sum over
    tokens of |activation times its loss gradient|; needs a backward pass), magnitude (L2 norm of
    the weights), random, reference (the rule that the method's authors published, as a baseline:
    neurons are selected on 10 samples of --data and 1000 of --protect, at one position each, and
    deleted in index order; if it selects too few, the rest in index order follows). Other methods'
    scores, to be compared as their papers run them, with --compensate false and --rounds 1:
    minitron (mean magnitude of the activation over a document, L2 norm over documents), wanda (L2
    norm of the activation times the column's L1 norm), llm-pruner (sum over the neuron's weights of
    |weight times its loss gradient|; needs a backward pass and, for the gradients, as much memory
    as the FFNs take in float32), flap (fluctuation, and a bias of down_proj takes the place of what
    goes: each neuron's mean activation times its column; the result loads after ``import
    ptl_fast.flap``)."""

    layer_scorer: str = "residual"
    """Layer importance: residual (Eq. 5: mean L2 norm of the layer's change of the residual
    stream), block-influence (ShortGPT: 1 - cosine), angular (mean angle between the layer's input
    and output, over pi), last (removes the deepest)."""

    expert_scorer: str = "reap"
    """Importance of whole experts (--keep-experts): reap (REAP: mean, over the tokens that the
    router sends to an expert, of the router's weight times the norm of the expert's output), output
    (the sum over these tokens instead of the mean), frequency (how many tokens those are),
    random."""

    calibration_tokens: int = 131072
    """Tokens of each round's subset (and of --protect) that score neurons and layers. Where the
    subset holds fewer, those of other
    rounds follow: few tokens make poor least squares, and scoring does not train on them."""

    calibrate_on: Literal["all", "answers"] = "all"
    """Which of these tokens count in statistics and least squares: all, or answers (of chats the
    assistant's turns, of a question with its answer the answer; each with the token that ends it;
    of plain text all). --calibration-tokens is how many are read, in either case. --scorer gradient
    takes the loss of these tokens."""

    ridge: float | Literal["auto"] = RIDGE
    """Ridge of the least squares of --scorer reconstruction, --compensate and --compensate-layers,
    as a fraction of the mean square of a neuron's activations. Too small a one learns the
    calibration text by heart, too large a one leaves what the other neurons could make up for. auto
    chooses one for each layer, or block of dropped layers, by the error on calibration tokens that
    are set aside for it: try it where --calibration-tokens are few for the FFN's width."""

    protect_share: float = 0.5
    """How much --protect's text counts. --scorer reconstruction, --compensate and
    --compensate-layers give its tokens this share of the weight in their least squares; other
    scorers never remove this share of each layer's neurons, those that rank highest on that text.
    Scorer reference has a use of its own for it, and no other."""

    token_weights: Literal["none", "divergence"] = "none"
    """How much each of --calibration-tokens counts when neurons are scored and compensated. none:
    all alike. divergence: a token counts more the further a probe's prediction after it is from the
    model's (KL over its 16 likeliest tokens and the rest); the probe is the model without the
    neurons that unweighted scores remove, compensated if --compensate says so. Neurons are then
    scored again, if the scorer reads sums of squares, sums or Gram matrices. Costs two forward
    passes with the language-model head and a second pass for statistics in each round that removes
    neurons. --protect's text and layers' scores are not weighted."""

    all_statistics: bool = False
    """Also store each neuron's sum, sum of magnitudes and largest magnitude in
    statistics.safetensors.
    """

    score_once: bool = False
    """Score neurons, and layers, only in the first round that removes them: later rounds remove the
    next ones of that order.
    """

    score_during_recovery: bool = False
    """Take each next round's statistics from the last --calibration-tokens of a round's recovery
    (or all of a shorter one), so from that round's data, instead of a pass of its own; the first
    round still needs one. Brings --fused-ffn with it. Not for the scorers reconstruction, gradient
    and reference."""

    @property
    def weighs_tokens(self) -> bool:
        """Whether tokens get weights (--token-weights)."""
        return self.token_weights != "none"

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        check_at_least_one(self, ["calibration_tokens"])
        if self.weighs_tokens and self.score_during_recovery:
            raise ValueError(
                "--token-weights divergence runs a probe over the calibration tokens, and"
                " --score-during-recovery has no such pass; leave one of the two out"
            )
        if self.ridge != "auto" and self.ridge <= 0:
            raise ValueError(
                f"--ridge {self.ridge} must be above 0: neurons that depend on one another linearly"
                " have no least squares without it; or auto"
            )
        if not 0 <= self.protect_share < 1:
            raise ValueError(f"--protect-share {self.protect_share} is outside [0, 1)")

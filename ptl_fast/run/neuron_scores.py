"""What a plan is made from: a round's scores, and which neurons are protected or redundant."""

from typing import TYPE_CHECKING

from ptl_fast.baselines import SCORERS
from ptl_fast.pruning import plan as plan_module
from ptl_fast.pruning.round_kinds import Scores

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.config.config import Config


def of_tensors(config: "Config", kept: "dict[str, Tensor]") -> Scores:
    """The scores that a round's statistics.safetensors holds, as the settings say to read them."""
    scorer, threshold = SCORERS[config.score.scorer], config.prune.threshold
    scores, protected, redundant = kept["scores"], None, None
    if "protect_scores" in kept:
        protected = plan_module.protect(kept["protect_scores"], config.score.protect_share)
    # --threshold takes the place of the scorer's own rule for redundant neurons
    if threshold is not None:
        redundant = scorer.per_token(scores, kept["num_tokens"]) <= threshold
    elif scorer.redundant_below is not None:
        redundant = scores < scorer.redundant_below
    assert isinstance(config.prune.width_multiple, int)
    return Scores(
        scorer=config.score.scorer,
        values=scores,
        kept=kept,
        protected_LK=protected,
        redundant_LI=redundant,
        redundant_only=threshold is not None,
        width_multiple=config.prune.width_multiple,
    )

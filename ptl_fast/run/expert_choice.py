"""Which whole experts go: the run's side of --keep-experts."""

from typing import TYPE_CHECKING

from ptl_fast.base.console import say
from ptl_fast.model.families import feed_forwards
from ptl_fast.model.widths import expert_limits
from ptl_fast.pruning.round_kinds import Scores
from ptl_fast.scoring.expert_scorers import EXPERT_SCORERS, by_layer

OWNERS = "layer_U"
"""statistics.safetensors: of which layer each FFN of a mixture is."""

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ptl_fast.model.families import Family
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext
    from ptl_fast.scoring.statistics import Statistics


def scores(context: "RunContext", step: "Round", taken: "Statistics") -> Scores:
    """The experts' scores, and the statistics behind them for the round's folder."""
    name, now = context.config.score.expert_scorer, context.now
    seed = context.config.run.seed * 1000 + step.number
    values_U = EXPERT_SCORERS[name].compute(taken, seed)
    values_ME = by_layer(now.model, now.family, values_U)
    assert taken.tokens_U is not None
    say(spread_line(step.number, by_layer(now.model, now.family, taken.tokens_U)))
    return Scores(
        scorer=name,
        values=values_ME,
        kept={**taken.tensors(), **owners(now.model, now.family), "scores": values_ME},
        groups=expert_limits(now.model.config).groups,
    )


def owners(model: "PreTrainedModel", family: "Family") -> "dict[str, Tensor]":
    """{OWNERS: the layer of each FFN of a mixture}; empty for other models."""
    if family.mixture is None:
        return {}
    import torch

    names = feed_forwards(model, family)
    return {OWNERS: torch.tensor([int(name.partition(".")[0]) for name in names])}


def spread_line(number: int, tokens_ME: "Tensor") -> str:
    """Say in one sentence how the router spread a round's calibration tokens over the experts."""
    share_ME = tokens_ME / tokens_ME.sum(1, keepdim=True).clamp_min(1)
    return (
        f"Round {number}: of a layer's routed tokens, {share_ME.min():.1%} to {share_ME.max():.1%}"
        f" went to an expert ({int((tokens_ME == 0).sum())} of {tokens_ME.numel()} got none)."
    )

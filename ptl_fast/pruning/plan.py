"""Decide what a round removes: importance scores -> PruningPlan.

Shape suffixes: L layers, I FFN width, K neurons kept or protected per layer.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from ptl_fast.pruning.schedule import Round


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What one round removes. Indices refer to the model before the round."""

    round: int
    """The round's number, from 1."""
    kind: str
    """A key of ROUND_KINDS."""
    scorer: str
    """The scorer that ranked the neurons or layers; empty if nothing was ranked."""
    width: int
    """FFN width after the round."""
    num_layers: int
    """Number of layers after the round."""
    kept_neurons: list[list[int]] | None
    """Indices of the neurons that stay in each layer, ascending; None if none are removed."""
    dropped_layers: list[int] = field(default_factory=list)
    """Indices of the layers that are removed, ascending."""
    num_experts: int | None = None
    """Routed experts of each layer after the round; None where none go in the run."""
    kept_experts: list[list[int]] | None = None
    """Indices of the experts that stay in each layer that has some, ascending; None if none are
    removed.
    """
    num_rescued: int = 0
    """Neurons per layer (mean) that only --protect kept from being removed. 0 with scorers such as
    reconstruction that read the protected text themselves: there no neuron is exempt by rank.
    """
    layer_scores: list[float] | None = None
    """In a layer round, the score of every layer."""
    expert_scores: list[list[float]] | None = None
    """In an expert round, the score of every expert, by layer."""
    num_redundant: list[int] | None = None
    """Number of redundant neurons in each layer, by --threshold or by the rule of the scorer
    reference. Protected neurons do not count.
    """
    hidden_size: int | None = None
    """In a hidden round, the size of the residual stream that is left."""
    down_bias: bool = False
    """Whether the down projections have a bias after the round, in place of what went (FLAP)."""
    highest_removed: list[float] | None = None
    """Highest score among the removed neurons, one per layer (in a layer round, one in all, among
    the removed layers). It exceeds ``lowest_kept`` where --protect kept a lower score.
    """
    lowest_kept: list[float] | None = None
    """Lowest score among those that stay, in the same form."""


def plan_neurons(
    step: Round,
    scores_LI: "Tensor",
    protected_LK: "Tensor | None",
    scorer: str,
    redundant_LI: "Tensor | None" = None,
) -> PruningPlan:
    """Keep the ``step.width`` neurons with the highest scores in each layer, after protected ones.

    Args:
        scores_LI: importance, (num_layers, width).
        protected_LK: indices of neurons that must stay, (num_layers, num_protected) int64; None
            protects none.
        redundant_LI: (num_layers, width) bool; only counted, for the plan's ``num_redundant``.
    """
    # a copy, because the margins below and the rescued neurons need the true scores
    ranked_LI = scores_LI.clone()
    if protected_LK is not None:
        ranked_LI.scatter_(1, protected_LK, float("inf"))
    kept_LK = keep_highest(ranked_LI, step.width)
    highest_removed, lowest_kept = _margins(scores_LI, kept_LK)
    return PruningPlan(
        round=step.number,
        kind="neurons",
        scorer=scorer,
        width=step.width,
        num_layers=step.num_layers,
        num_experts=step.num_experts,
        kept_neurons=kept_LK.tolist(),
        num_rescued=_num_rescued(scores_LI, protected_LK, step.width),
        num_redundant=None if redundant_LI is None else redundant_LI.sum(1).tolist(),
        down_bias=step.down_bias,
        highest_removed=highest_removed,
        lowest_kept=lowest_kept,
    )


def keep_highest(scores_LI: "Tensor", width: int) -> "Tensor":
    """The neurons with the highest scores in each layer: (num_layers, width) int64, ascending."""
    # stable, so that ties (dead neurons, all with score 0) are broken in the same way on each rank
    return scores_LI.argsort(dim=1, descending=True, stable=True)[:, :width].sort(dim=1).values


def plan_redundant(
    step: Round,
    scores_LI: "Tensor",
    protected_LK: "Tensor | None",
    scorer: str,
    redundant_LI: "Tensor",
    multiple: int,
) -> PruningPlan:
    """Remove redundant neurons (Eq. 3 of arXiv 2602.04919), lowest scores first.

    Each layer loses the same number, since all layers have one width: at most as many as are
    redundant in the layer with the fewest. The width is then rounded up to a multiple of
    ``multiple`` and is at least ``step.width``. If it does not shrink, ``kept_neurons`` is None.

    Args:
        redundant_LI: neurons whose score is at most the threshold, (num_layers, width) bool;
            protected ones are taken out. The other arguments are those of ``plan_neurons``.
    """
    if protected_LK is not None:
        redundant_LI = redundant_LI.scatter(1, protected_LK, False)
    before = scores_LI.shape[1]
    # the smallest width for which no layer loses a neuron that is not redundant
    lowest = before - int(redundant_LI.sum(1).min())
    width = min(before, max(step.width, -(-lowest // multiple) * multiple))
    # ranking all neurons removes only redundant ones: these have the lowest scores, and the width
    # leaves room for every other one
    decided = plan_neurons(
        replace(step, width=width), scores_LI, protected_LK, scorer, redundant_LI
    )
    return (
        decided
        if width < before
        else replace(decided, kept_neurons=None, highest_removed=None, lowest_kept=None)
    )


@dataclass(frozen=True, kw_only=True)
class LayerLimits:
    """Which layers may go."""

    staying: Collection[int] = ()
    """Layers that the model cannot do without."""
    kinds: Sequence[str] = ()
    """Each layer's kind of attention, where its pattern must survive."""
    wanted: Sequence[str] = ()
    """The kinds that the layers that stay must have, in order."""


def plan_layers(
    step: Round, scores_L: "Tensor", scorer: str, limits: LayerLimits | None = None
) -> PruningPlan:
    """Drop the layers with the lowest scores, (num_layers,), until ``step.num_layers`` are left.

    Raises:
        ValueError: the limits do not allow so many to go.
    """
    import torch

    limits = limits or LayerLimits()
    num_dropped = len(scores_L) - step.num_layers
    order = [each for each in scores_L.argsort(stable=True).tolist() if each not in limits.staying]
    by_pattern = _least_by_pattern(scores_L.tolist(), limits) if limits.wanted else None
    gone = order[:num_dropped] if by_pattern is None else by_pattern
    if len(gone) < num_dropped:
        raise ValueError(
            f"round {step.number} should drop {num_dropped} layers, and the model can do without"
            f" {len(gone)} of them; lower --drop-layers"
        )
    dropped = torch.tensor(sorted(gone), dtype=torch.int64)
    kept = torch.tensor(sorted(set(range(len(scores_L))) - set(gone)))
    highest_removed, lowest_kept = _margins(scores_L[None], kept[None])
    return PruningPlan(
        round=step.number,
        kind="layers",
        scorer=scorer,
        width=step.width,
        num_layers=step.num_layers,
        num_experts=step.num_experts,
        kept_neurons=None,
        dropped_layers=dropped.tolist(),
        layer_scores=scores_L.tolist(),
        down_bias=step.down_bias,
        highest_removed=highest_removed,
        lowest_kept=lowest_kept,
    )


def _least_by_pattern(scores: list[float], limits: LayerLimits) -> list[int]:
    """The layers with the lowest sum of scores without which the others' kinds are those wanted;
    none if there are no such layers.

    Dynamic programming over prefixes: best[k] is the least sum of removed scores, and what goes,
    when k layers of the prefix stay.
    """
    nothing: tuple[float, list[int]] = (math.inf, [])
    best = [(0.0, []), *[nothing] * len(limits.wanted)]
    for layer, score in enumerate(scores):
        goes = math.inf if layer in limits.staying else score
        # from the longest, so that best[k - 1] is still of the shorter prefix
        for kept in range(len(limits.wanted), -1, -1):
            choices = [(best[kept][0] + goes, [*best[kept][1], layer])]
            if kept and limits.kinds[layer] == limits.wanted[kept - 1]:
                choices.append(best[kept - 1])
            best[kept] = min(choices, key=lambda choice: choice[0])
    total, gone = best[-1]
    return gone if total < math.inf else []


def plan_experts(step: Round, scores_ME: "Tensor", scorer: str, groups: int = 1) -> PruningPlan:
    """Keep the ``step.num_experts`` experts with the highest scores in each layer, as many of each
    group.

    Args:
        scores_ME: (layers with experts, experts of each).
        groups: the router chooses among so many groups first, of neighbouring experts.
    """
    import torch

    assert step.num_experts is not None
    mixtures, number = scores_ME.shape
    # groups as rows, so that each is ranked by itself
    grouped = scores_ME.reshape(mixtures * groups, number // groups)
    kept = keep_highest(grouped, step.num_experts // groups).view(mixtures, groups, -1)
    first_G1 = torch.arange(groups)[:, None] * (number // groups)
    kept_MK = (kept + first_G1).flatten(1)
    highest_removed, lowest_kept = _margins(scores_ME, kept_MK)
    return PruningPlan(
        round=step.number,
        kind=step.kind,
        scorer=scorer,
        width=step.width,
        num_layers=step.num_layers,
        num_experts=step.num_experts,
        kept_neurons=None,
        kept_experts=kept_MK.tolist(),
        expert_scores=[[float(f"{each:.6g}") for each in row] for row in scores_ME.tolist()],
        down_bias=step.down_bias,
        highest_removed=highest_removed,
        lowest_kept=lowest_kept,
    )


def plan_nothing(step: Round) -> PruningPlan:
    """The plan of a round without scores: it only trains, or it slices the residual stream.

    Slicing finds the directions to remove itself, from each block's outputs in turn.
    """
    return PruningPlan(
        round=step.number,
        kind=step.kind,
        scorer="",
        width=step.width,
        num_layers=step.num_layers,
        num_experts=step.num_experts,
        kept_neurons=None,
        hidden_size=step.hidden_size,
        down_bias=step.down_bias,
    )


def _margins(
    scores_LI: "Tensor", kept_LK: "Tensor"
) -> tuple[list[float] | None, list[float] | None]:
    """``highest_removed`` and ``lowest_kept`` of each row of scores; None if nothing is removed.

    To six significant digits, to which ranks agree whatever the order of their sums.
    """
    if kept_LK.shape[1] == scores_LI.shape[1]:
        return None, None
    # of the removed ones: put the kept ones out of the maximum's reach
    margins = (
        scores_LI.scatter(1, kept_LK, float("-inf")).amax(1),
        scores_LI.gather(1, kept_LK).amin(1),
    )
    highest, lowest = ([float(f"{score:.6g}") for score in each.tolist()] for each in margins)
    return highest, lowest


def protect(scores_LI: "Tensor", share: float) -> "Tensor":
    """Return the neurons to protect, those that score highest on the protected corpus.

    Args:
        scores_LI: importance on that corpus, (num_layers, width).
        share: fraction of each layer's neurons to protect; the number is rounded down.

    Returns:
        Indices, (num_layers, num_protected) int64.
    """
    return scores_LI.topk(int(share * scores_LI.shape[1]), dim=1).indices


def _num_rescued(scores_LI: "Tensor", protected_LK: "Tensor | None", width: int) -> int:
    """Mean number of neurons per layer that would have been removed without protection."""
    if protected_LK is None:
        return 0
    # argsort of argsort: each neuron's rank, 0 for the highest score
    rank_LI = scores_LI.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return round((rank_LI.gather(1, protected_LK) >= width).sum().item() / len(scores_LI))

"""The PruningPlan of a round: what goes and what stays."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from ptl_fast.pruning.schedule import Round


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What one round removes. Indices are those of the model before the round."""

    round: int
    kind: str
    scorer: str
    width: int
    num_layers: int
    kept_neurons: list[list[int]] | None
    """Per layer, ascending; None when no neurons go."""
    dropped_layers: list[int]
    num_rescued: int
    """Neurons a layer (mean) that would have gone, had --protect not kept them. Scorer
    reconstruction keeps none by rank: 0.
    """
    layer_scores: list[float] | None
    """For a layer round: the score of every layer."""
    num_redundant: list[int] | None = None
    """Neurons of each layer that --threshold, or the rule of scorer reference, calls redundant;
    protected ones do not count.
    """
    hidden_size: int | None = None
    """For a hidden round: the dimensions of the residual stream that stay."""
    highest_removed: list[float] | None = None
    """The highest score that went: of each layer's neurons, or of the layers. Above ``lowest_kept``
    where --protect kept others.
    """
    lowest_kept: list[float] | None = None
    """The lowest score that stayed, likewise."""

    @property
    def removes_nothing(self) -> bool:
        """Whether no neuron went although the round was there for that: --threshold found too few
        redundant ones.
        """
        return self.num_redundant is not None and self.kept_neurons is None


def plan_neurons(
    step: Round,
    scores_LI: "Tensor",
    protected_LK: "Tensor | None",
    scorer: str,
    redundant_LI: "Tensor | None" = None,
) -> PruningPlan:
    """Keep the ``step.width`` most important neurons of each layer, protected ones first.

    Args:
        scores_LI: (num_layers, width) importance.
        protected_LK: (num_layers, num_protected) int64 indices that must stay, or None.
        redundant_LI: (num_layers, width) bool, which neurons some rule calls redundant: the plan
            says how many there were.
    """
    ranked_LI = scores_LI.clone()
    if protected_LK is not None:
        ranked_LI.scatter_(1, protected_LK, float("inf"))
    kept_LK = (
        ranked_LI.argsort(dim=1, descending=True, stable=True)[:, : step.width].sort(dim=1).values
    )
    highest_removed, lowest_kept = _margins(scores_LI, kept_LK)
    return PruningPlan(
        round=step.number,
        kind="neurons",
        scorer=scorer,
        width=step.width,
        num_layers=step.num_layers,
        kept_neurons=kept_LK.tolist(),
        dropped_layers=[],
        num_rescued=_num_rescued(scores_LI, protected_LK, step.width),
        layer_scores=None,
        num_redundant=None if redundant_LI is None else redundant_LI.sum(1).tolist(),
        highest_removed=highest_removed,
        lowest_kept=lowest_kept,
    )


def plan_redundant(
    step: Round,
    scores_LI: "Tensor",
    protected_LK: "Tensor | None",
    scorer: str,
    redundant_LI: "Tensor",
    multiple: int,
) -> PruningPlan:
    """Remove neurons that are redundant (Eq. 3 of arXiv 2602.04919), as many in each layer as in
    the layer that has fewest.

    The width that stays is a multiple of ``multiple``, and at least ``step.width``; the lowest
    scores go first. Protected neurons are not redundant. If nothing can go, the plan's
    ``removes_nothing`` says so.

    Args:
        redundant_LI: (num_layers, width) bool, the neurons whose score is at most the threshold;
            the others are as in plan_neurons.
    """
    if protected_LK is not None:
        redundant_LI = redundant_LI.scatter(1, protected_LK, False)
    before = scores_LI.shape[1]
    lowest = before - int(redundant_LI.sum(1).min())
    width = min(before, max(step.width, -(-lowest // multiple) * multiple))
    decided = plan_neurons(
        replace(step, width=width), scores_LI, protected_LK, scorer, redundant_LI
    )
    return (
        decided
        if width < before
        else replace(decided, kept_neurons=None, highest_removed=None, lowest_kept=None)
    )


def plan_layers(step: Round, scores_L: "Tensor", scorer: str) -> PruningPlan:
    """Drop the least important layers, (num_layers,) importance, until ``step.num_layers`` are
    left.
    """
    ranked = scores_L.argsort(stable=True)
    dropped, kept = (
        each.sort().values
        for each in ranked.split([len(scores_L) - step.num_layers, step.num_layers])
    )
    highest_removed, lowest_kept = _margins(scores_L[None], kept[None])
    return PruningPlan(
        round=step.number,
        kind="layers",
        scorer=scorer,
        width=step.width,
        num_layers=step.num_layers,
        kept_neurons=None,
        dropped_layers=dropped.tolist(),
        num_rescued=0,
        layer_scores=scores_L.tolist(),
        highest_removed=highest_removed,
        lowest_kept=lowest_kept,
    )


def plan_nothing(step: Round) -> PruningPlan:
    """A round that only trains, or slices the residual stream: which directions go is found while
    slicing, block after block.
    """
    return PruningPlan(
        round=step.number,
        kind=step.kind,
        scorer="",
        width=step.width,
        num_layers=step.num_layers,
        kept_neurons=None,
        dropped_layers=[],
        num_rescued=0,
        layer_scores=None,
        hidden_size=step.hidden_size,
    )


def _margins(
    scores_LI: "Tensor", kept_LK: "Tensor"
) -> tuple[list[float] | None, list[float] | None]:
    """highest_removed and lowest_kept of each row of scores, to six digits, which ranks agree on;
    None where nothing goes.
    """
    if kept_LK.shape[1] == scores_LI.shape[1]:
        return None, None
    margins = (
        scores_LI.scatter(1, kept_LK, float("-inf")).amax(1),
        scores_LI.gather(1, kept_LK).amin(1),
    )
    highest, lowest = ([float(f"{score:.6g}") for score in each.tolist()] for each in margins)
    return highest, lowest


def protect(scores_LI: "Tensor", share: float) -> "Tensor":
    """Return the indices of each layer's neurons that score highest on the protected corpus,
    (num_layers, num_protected).
    """
    return scores_LI.topk(int(share * scores_LI.shape[1]), dim=1).indices


def _num_rescued(scores_LI: "Tensor", protected_LK: "Tensor | None", width: int) -> int:
    """Mean number of neurons a layer that would have gone without protection."""
    if protected_LK is None:
        return 0
    rank_LI = scores_LI.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return round((rank_LI.gather(1, protected_LK) >= width).sum().item() / len(scores_LI))

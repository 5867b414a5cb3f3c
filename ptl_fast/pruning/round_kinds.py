"""The kinds of rounds: how each plans what to remove, removes it, and halves its step.

A kind of round removes neurons, or layers, or nothing (training only). A new kind is one entry in
ROUND_KINDS, here or in ptl_fast.baselines; no other code compares the kinds' names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ptl_fast.model.families import Family, down_projections
from ptl_fast.pruning.plan import (
    LayerLimits,
    PruningPlan,
    plan_experts,
    plan_layers,
    plan_neurons,
    plan_nothing,
    plan_redundant,
)
from ptl_fast.pruning.schedule import Round

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.compensate_layers import Fold


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores that a plan is made from."""

    scorer: str
    """The scorer's name, which the plan records."""
    values: "Tensor"
    """(num_layers, width) for neurons, (num_layers,) for layers, (layers with experts, experts) for
    experts; the lowest are removed first.
    """
    kept: "dict[str, Tensor]"
    """Statistics and scores to write to the round's folder."""
    protected_LK: "Tensor | None" = None
    """(num_layers, num_protected): indices of neurons that stay whatever their score."""
    redundant_LI: "Tensor | None" = None
    """(num_layers, width) bool: neurons redundant by --threshold, or by the scorer's own rule."""
    redundant_only: bool = False
    """Whether none but redundant neurons may go (--threshold): then the scores decide how many."""
    width_multiple: int = 1
    """Where the scores decide, the width that is left is a multiple of this."""
    limits: LayerLimits | None = None
    """Which layers may go; None: all."""
    groups: int = 1
    """Of each group of experts as many stay."""


@dataclass(frozen=True, kw_only=True)
class PruningWork:
    """The model that a plan is applied to, and what that takes."""

    model: "PreTrainedModel"
    """Pruning may make it smaller in place."""
    family: Family
    optimizer_state: "dict[str, dict[str, Tensor]] | None" = None
    """Adam moments from the round before, pruned in place like the weights; None: none kept."""
    grams: "Iterable[Tensor] | None" = None
    """Each layer's Gram matrix A^T A on the calibration tokens, (width, width), for fitting the
    remaining neurons' down projection by least squares; None: it is not fitted.
    """
    columns: "Sequence[Tensor] | None" = None
    """Each layer's columns of the neurons that stay, fitted already; then ``grams`` are not read.
    """
    gram_means: "Mapping[int, Tensor] | None" = None
    """By layer, each neuron's mean, where the Gram matrices are of activations less their means."""
    folds: "Sequence[Fold]" = ()
    """What takes the place of the blocks of layers that go; empty: nothing does."""
    tokens: "PackedTokens"
    """The round's calibration tokens."""
    batch_size: int
    """Packed sequences per batch of a calibration pass."""


Decide = Callable[[Round, Scores | None], PruningPlan]
"""(round, scores of what it makes smaller: see ``RoundKind.size``) -> plan. A round that removes no
neurons is given with the width that the model has.
"""
Apply = Callable[[PruningPlan, PruningWork], "tuple[PreTrainedModel, dict[str, Tensor]]"]
"""(plan, work) -> (the smaller model, tensors for the round's folder)."""
Halve = Callable[[int, int], tuple[int | None, str | None]]
"""(what a round removed, what it removes multiples of) -> (half of it, None), or (None, why it has
no half).
"""


@dataclass(frozen=True, kw_only=True)
class RoundKind:
    """One kind of round, and what the rest of the run must know of it."""

    plan: Decide
    apply: Apply
    halve: Halve
    size: Literal["width", "num_layers", "num_experts"] | None = None
    """The field of Round that the kind makes smaller; None if it changes none."""
    unit: str
    """The unit of what it removes, for messages."""
    title: str | None = None
    """Its name in tables, if the key of ROUND_KINDS says too little."""
    removes: bool = True
    """Whether it changes the model before recovery."""
    is_final: bool = False
    """Whether it is the --final-recovery after all pruning: its tokens come on top of the other
    rounds', and the quality gate does not hold for it.
    """


def _plan_neurons(step: Round, scores: Scores | None) -> PruningPlan:
    assert scores is not None
    values, protected, redundant = scores.values, scores.protected_LK, scores.redundant_LI
    # the schedule decides how many neurons go, unless --threshold leaves that to the scores
    if not scores.redundant_only:
        return plan_neurons(step, values, protected, scores.scorer, redundant)
    assert redundant is not None
    return plan_redundant(step, values, protected, scores.scorer, redundant, scores.width_multiple)


def _plan_layers(step: Round, scores: Scores | None) -> PruningPlan:
    # --threshold is about neurons: the schedule always decides how many layers go
    assert scores is not None
    return plan_layers(step, scores.values, scores.scorer, scores.limits)


def _plan_experts(step: Round, scores: Scores | None) -> PruningPlan:
    assert scores is not None
    return plan_experts(step, scores.values, scores.scorer, scores.groups)


def plan_without_scores(step: Round, scores: Scores | None) -> PruningPlan:
    """The plan of a round that scores neither neurons nor layers."""
    return plan_nothing(step)


def _compact(plan: PruningPlan, work: PruningWork) -> "tuple[PreTrainedModel, dict[str, Tensor]]":
    from ptl_fast.pruning.compact import compact_
    from ptl_fast.pruning.compensate import compensate_, put_columns_
    from ptl_fast.pruning.compensate_layers import fold_

    downs = down_projections(work.model, work.family)
    # before compaction: the fit needs the columns of the neurons that go
    if work.columns is not None and plan.kept_neurons is not None:
        put_columns_(downs, work.columns, plan.kept_neurons)
    elif work.grams is not None and plan.kept_neurons is not None:
        compensate_(downs, work.grams, plan.kept_neurons, work.gram_means)
    # likewise, as folds go by the layers' numbers before it
    if work.folds:
        fold_(downs, work.folds)
    compact_(work.model, work.family, plan, work.optimizer_state)
    return work.model, {}


def _keep(plan: PruningPlan, work: PruningWork) -> "tuple[PreTrainedModel, dict[str, Tensor]]":
    return work.model, {}


def _halve_neurons(removed: int, multiple: int) -> tuple[int | None, str | None]:
    # rounded down to a multiple, but never to zero
    if removed > multiple:
        return max(multiple, removed // 2 // multiple * multiple), None
    return None, f"{removed} neurons a layer is the smallest step (--width-multiple {multiple})"


def _halve_layers(removed: int, multiple: int) -> tuple[int | None, str | None]:
    return (removed // 2, None) if removed > 1 else (None, "one layer is the smallest step")


def _halve_experts(removed: int, groups: int) -> tuple[int | None, str | None]:
    if removed > groups:
        return max(groups, removed // 2 // groups * groups), None
    which = "one expert" if groups == 1 else "one expert of each group"
    return None, f"{which} is the smallest step"


def _no_half(removed: int, multiple: int) -> tuple[int | None, str | None]:
    return None, "a round that only trains has no step to halve"


# ptl_fast.baselines adds SliceGPT's kind; a run looks kinds up there
ROUND_KINDS = {
    "neurons": RoundKind(
        plan=_plan_neurons,
        apply=_compact,
        halve=_halve_neurons,
        size="width",
        unit="neurons a layer",
    ),
    "layers": RoundKind(
        plan=_plan_layers, apply=_compact, halve=_halve_layers, size="num_layers", unit="layers"
    ),
    "experts": RoundKind(
        plan=_plan_experts,
        apply=_compact,
        halve=_halve_experts,
        size="num_experts",
        unit="experts a layer",
    ),
    # a round of a run that has nothing to prune, for comparison with pruned ones
    "none": RoundKind(
        plan=plan_without_scores,
        apply=_keep,
        halve=_no_half,
        unit="nothing",
        title="training only",
        removes=False,
    ),
    # --final-recovery
    "final": RoundKind(
        plan=plan_without_scores,
        apply=_keep,
        halve=_no_half,
        unit="nothing",
        removes=False,
        is_final=True,
    ),
}

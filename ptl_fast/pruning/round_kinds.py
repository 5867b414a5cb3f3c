"""The kinds of rounds: how each decides what goes, removes it, and becomes a smaller step.

A new kind is one entry in ROUND_KINDS, here or beside a baseline. Nobody else compares their names.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from ptl_fast.model.families import Family, feed_forwards
from ptl_fast.pruning.plan import (
    PruningPlan,
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


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores that a plan is made of."""

    scorer: str
    """Its name, for the plan."""
    values: "Tensor"
    """(num_layers, width) of neurons, or (num_layers,) of layers."""
    kept: "dict[str, Tensor]"
    """What goes to the round's folder: statistics and scores."""
    protected_LK: "Tensor | None" = None
    """(num_layers, num_protected): neurons that stay whatever their score."""
    redundant_LI: "Tensor | None" = None
    """(num_layers, width) bool: neurons that --threshold, or a scorer's own rule, calls redundant.
    """


class PruningWork(Protocol):
    """What a kind of round may ask for; ptl_fast.run gives it, and computes what is asked for."""

    model: "PreTrainedModel"
    """Becomes the smaller one."""
    family: Family
    batch_size: int
    threshold: float | None
    width_multiple: int
    compensates: bool

    @property
    def optimizer_state(self) -> "dict[str, dict[str, Tensor]] | None":
        """Of the round before; follows the weights."""

    def neuron_scores(self) -> Scores:
        """Scores of the neurons that are there now."""

    def layer_scores(self) -> Scores:
        """Scores of the layers that are there now."""

    def grams(self) -> "Iterable[Tensor]":
        """Each layer's Gram matrix on the round's calibration tokens."""

    def calibration_tokens(self) -> "PackedTokens":
        """The first of the round's own data."""


Decide = Callable[[Round, PruningWork], tuple[PruningPlan, "dict[str, Tensor]"]]
"""-> the plan, and the tensors behind it for the round's folder (none: no file)"""
Apply = Callable[[PruningPlan, PruningWork], "dict[str, Tensor]"]
"""Makes ``work.model`` smaller; -> tensors for the round's folder (none: no file)"""
Halve = Callable[[int, int], tuple[int | None, str | None]]
"""(what a round removed, --width-multiple) -> half of it, or None and why there is no smaller step
"""


@dataclass(frozen=True, kw_only=True)
class RoundKind:
    """What the kinds of rounds differ in."""

    plan: Decide
    apply: Apply
    halve: Halve
    size: Literal["width", "num_layers"] | None = None
    """The field of Round that the kind makes smaller, where there is one."""
    unit: str
    """What it removes, for people."""
    title: str | None = None
    """What it is called in tables, where its name says too little."""
    removes: bool = True
    """False where the model is the same before recovery."""
    is_final: bool = False
    """After all pruning: its tokens come on top, and the quality gate does not judge it."""


def _plan_neurons(step: Round, work: PruningWork) -> tuple[PruningPlan, "dict[str, Tensor]"]:
    found = work.neuron_scores()
    scores, protected, redundant = found.values, found.protected_LK, found.redundant_LI
    if work.threshold is None:
        return plan_neurons(step, scores, protected, found.scorer, redundant), found.kept
    assert redundant is not None
    plan = plan_redundant(step, scores, protected, found.scorer, redundant, work.width_multiple)
    return plan, found.kept


def _plan_layers(step: Round, work: PruningWork) -> tuple[PruningPlan, "dict[str, Tensor]"]:
    found = work.layer_scores()
    return plan_layers(_with_width(step, work), found.values, found.scorer), found.kept


def plan_without_scores(step: Round, work: PruningWork) -> tuple[PruningPlan, "dict[str, Tensor]"]:
    """The plan of a round that ranks neither neurons nor layers."""
    return plan_nothing(_with_width(step, work)), {}


def _with_width(step: Round, work: PruningWork) -> Round:
    """With --threshold, earlier rounds and not the schedule decided on the width."""
    return replace(step, width=work.model.config.intermediate_size)


def _compact(plan: PruningPlan, work: PruningWork) -> "dict[str, Tensor]":
    from ptl_fast.pruning.compact import compact_
    from ptl_fast.pruning.compensate import compensate_

    if work.compensates and plan.kept_neurons is not None:
        ffns = list(feed_forwards(work.model, work.family).values())
        compensate_(ffns, work.grams(), plan.kept_neurons)
    compact_(work.model, work.family, plan, work.optimizer_state)
    return {}


def _keep(plan: PruningPlan, work: PruningWork) -> "dict[str, Tensor]":
    return {}


def _halve_neurons(removed: int, multiple: int) -> tuple[int | None, str | None]:
    if removed > multiple:
        return max(multiple, removed // 2 // multiple * multiple), None
    return None, f"{removed} neurons a layer is the smallest step (--width-multiple {multiple})"


def _halve_layers(removed: int, multiple: int) -> tuple[int | None, str | None]:
    return (removed // 2, None) if removed > 1 else (None, "one layer is the smallest step")


def _no_half(removed: int, multiple: int) -> tuple[int | None, str | None]:
    return None, "a round that only trains has no step to halve"


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
    "none": RoundKind(
        plan=plan_without_scores,
        apply=_keep,
        halve=_no_half,
        unit="nothing",
        title="training only",
        removes=False,
    ),
    "final": RoundKind(
        plan=plan_without_scores,
        apply=_keep,
        halve=_no_half,
        unit="nothing",
        removes=False,
        is_final=True,
    ),
}

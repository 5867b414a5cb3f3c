"""The kinds of rounds: how each plans what to remove, removes it, and halves its step.

A kind of round removes neurons, or layers, or nothing (training only). A new kind is one entry in
ROUND_KINDS, here or in ptl_fast.baselines; no other code compares the kinds' names.
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
    """The scores that a plan is made from."""

    scorer: str
    """The scorer's name, which the plan records."""
    values: "Tensor"
    """(num_layers, width) for neurons, (num_layers,) for layers; the lowest are removed first."""
    kept: "dict[str, Tensor]"
    """Statistics and scores to write to the round's folder."""
    protected_LK: "Tensor | None" = None
    """(num_layers, num_protected): indices of neurons that stay whatever their score."""
    redundant_LI: "Tensor | None" = None
    """(num_layers, width) bool: neurons redundant by --threshold, or by the scorer's own rule."""


class PruningWork(Protocol):
    """What a kind of round may ask for, to plan and to prune.

    ptl_fast.run implements it, and computes scores and Gram matrices only when they are asked for.
    """

    model: "PreTrainedModel"
    """The model; pruning makes it smaller in place, or assigns another one."""
    family: Family
    batch_size: int
    """Packed sequences per batch of a calibration pass."""
    threshold: float | None
    """The value of --threshold."""
    width_multiple: int
    """FFN widths must be multiples of this."""
    compensates: bool
    """Whether the remaining neurons' down projection is fitted by least squares (--compensate)."""

    @property
    def optimizer_state(self) -> "dict[str, dict[str, Tensor]] | None":
        """Adam moments from the round before, to be pruned like the weights; None: none kept."""

    def neuron_scores(self) -> Scores:
        """Scores of the model's present neurons."""

    def layer_scores(self) -> Scores:
        """Scores of the model's present layers."""

    def grams(self) -> "Iterable[Tensor]":
        """Each layer's Gram matrix A^T A on the calibration tokens, (width, width)."""

    def calibration_tokens(self) -> "PackedTokens":
        """Packed sequences from the round's own data, as many as --calibration-tokens."""


Decide = Callable[[Round, PruningWork], tuple[PruningPlan, "dict[str, Tensor]"]]
"""(round, work) -> (plan, tensors for the round's folder); without tensors no file is written."""
Apply = Callable[[PruningPlan, PruningWork], "dict[str, Tensor]"]
"""(plan, work) -> tensors for the round's folder; makes ``work.model`` smaller."""
Halve = Callable[[int, int], tuple[int | None, str | None]]
"""(what a round removed, --width-multiple) -> (half of it, None), or (None, why it has no half)."""


@dataclass(frozen=True, kw_only=True)
class RoundKind:
    """One kind of round, and what the rest of the run must know of it."""

    plan: Decide
    apply: Apply
    halve: Halve
    size: Literal["width", "num_layers"] | None = None
    """The field of Round that the kind makes smaller; None if it changes neither."""
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


def _plan_neurons(step: Round, work: PruningWork) -> tuple[PruningPlan, "dict[str, Tensor]"]:
    found = work.neuron_scores()
    scores, protected, redundant = found.values, found.protected_LK, found.redundant_LI
    # the schedule decides how many neurons go, unless --threshold leaves that to the scores
    if work.threshold is None:
        return plan_neurons(step, scores, protected, found.scorer, redundant), found.kept
    assert redundant is not None
    plan = plan_redundant(step, scores, protected, found.scorer, redundant, work.width_multiple)
    return plan, found.kept


def _plan_layers(step: Round, work: PruningWork) -> tuple[PruningPlan, "dict[str, Tensor]"]:
    # --threshold is about neurons: the schedule always decides how many layers go
    found = work.layer_scores()
    return plan_layers(_with_width(step, work), found.values, found.scorer), found.kept


def plan_without_scores(step: Round, work: PruningWork) -> tuple[PruningPlan, "dict[str, Tensor]"]:
    """The plan, without tensors, of a round that scores neither neurons nor layers."""
    return plan_nothing(_with_width(step, work)), {}


def _with_width(step: Round, work: PruningWork) -> Round:
    """The round with the model's present width: with --threshold it is not the schedule's."""
    return replace(step, width=work.model.config.intermediate_size)


def _compact(plan: PruningPlan, work: PruningWork) -> "dict[str, Tensor]":
    from ptl_fast.pruning.compact import compact_
    from ptl_fast.pruning.compensate import compensate_

    # before compaction: the fit needs the columns of the neurons that go
    if work.compensates and plan.kept_neurons is not None:
        ffns = list(feed_forwards(work.model, work.family).values())
        compensate_(ffns, work.grams(), plan.kept_neurons)
    compact_(work.model, work.family, plan, work.optimizer_state)
    return {}


def _keep(plan: PruningPlan, work: PruningWork) -> "dict[str, Tensor]":
    return {}


def _halve_neurons(removed: int, multiple: int) -> tuple[int | None, str | None]:
    # rounded down to a multiple, but never to zero
    if removed > multiple:
        return max(multiple, removed // 2 // multiple * multiple), None
    return None, f"{removed} neurons a layer is the smallest step (--width-multiple {multiple})"


def _halve_layers(removed: int, multiple: int) -> tuple[int | None, str | None]:
    return (removed // 2, None) if removed > 1 else (None, "one layer is the smallest step")


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

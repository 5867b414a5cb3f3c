"""The quality gate: whether a round's model is good enough, and what happens if it is not.

A round fails the gate if its metric (--gate) is worse than the dense model's by more than
--max-drop. Then, in this order:

1. *extend*: recovery trains longer, on the tokens that early stopping saved, and on up to
   --max-extra-recovery of the round's tokens on top;
2. *back-off*: the round is undone, and another attempt removes half as much;
3. *stop*: if the smallest step fails too, the run ends with the last model that passed.

The functions here are pure: they map measurements and earlier decisions, which are on disk, to the
next decision, so a resumed run decides the same. Nothing here trains or measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ptl_fast.baselines import ROUND_KINDS
from ptl_fast.config.checking import nearest

if TYPE_CHECKING:
    from ptl_fast.pruning.schedule import Round

# Longest training between two measurements, as a fraction of the round's tokens or steps.
EXTENSION = 0.5
# Shortest extension, in the same unit: less training is not worth an evaluation.
SHORTEST = 0.01
# In floating point 0.8 - 0.7 is above 0.1.
ROUNDING = 1e-9

Action = Literal["pass", "extend", "back-off", "stop"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The metric that a round must reach, and how far it may fall."""

    task: str
    metric: str
    higher_is_better: bool
    max_drop: float
    """Largest allowed difference from ``dense`` for the worse, in the metric's unit."""
    dense: float
    """The metric of the original, unpruned model."""

    @property
    def limit(self) -> float:
        """The worst value that passes."""
        return self.dense - self.max_drop if self.higher_is_better else self.dense + self.max_drop

    def passes(self, measured: float | None) -> bool:
        """Whether ``measured`` passes; None, a model that diverged, never does."""
        if measured is None:
            return False
        return (
            self.dense - measured if self.higher_is_better else measured - self.dense
        ) <= self.max_drop + ROUNDING


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A measurement after a recovery, or after an extension of it, and the action that followed."""

    round: int
    attempt: int
    """Counts from 1; every back-off begins another attempt at the same round."""
    extension: int
    """How often this attempt's recovery had been extended before the measurement."""
    kind: str
    """The round's kind, a key of ROUND_KINDS."""
    step: int
    """What the round removed: neurons per layer, or layers, depending on the kind."""
    task: str
    metric: str
    dense: float
    limit: float
    higher_is_better: bool
    measured: float | None
    """None if recovery diverged."""
    tokens: int
    """Tokens that the measured recovery, or extension, trained on."""
    action: Action
    next_share: float | None = None
    """With extend: the extension's length as a fraction of the round's tokens (or steps)."""
    next_tokens: int | None = None
    """With extend: the extension's tokens; 0 if recovery does not train on text."""
    next_step: int | None = None
    """With back-off: the largest ``step`` from now on in rounds of this kind."""
    reason: str | None = None
    """With stop: why no smaller step can be tried."""

    @property
    def stops(self) -> bool:
        """Whether the run ends here, before its target size."""
        return self.action == "stop"

    @property
    def undoes(self) -> bool:
        """Whether the round's model is discarded for the one before it."""
        return self.action in ("back-off", "stop")


def parse_gate(entry: str, labels: Sequence[str]) -> tuple[str, str]:
    """Split --gate TASK:METRIC into (task, metric).

    Args:
        labels: labels of the evaluation tasks, one of which TASK must be.

    Raises:
        ValueError: the entry has another form, or there is no such task.
    """
    task, colon, metric = entry.partition(":")
    if not (task and colon and metric):
        raise ValueError(f"--gate {entry!r} is not of the form TASK:METRIC, such as nll:nll")
    if not labels:
        raise ValueError(
            f"--gate {entry} looks at an evaluation task, and --eval-tasks none measures nothing;"
            f" give --eval-tasks {task}"
        )
    if task not in labels:
        raise ValueError(
            f"--gate {entry}: {task} is none of --eval-tasks; choose {', '.join(labels)}"
            f"{nearest(task, labels)}"
        )
    return task, metric


def check_metric(task: str, metric: str, metrics: Sequence[str]) -> None:
    """Raise ValueError if ``metric`` is not among ``metrics``, those of the task."""
    if metric not in metrics:
        choices = ", ".join(f"{task}:{name}" for name in metrics)
        raise ValueError(
            f"--gate {task}:{metric}: {task} has no metric {metric}; choose {choices}"
            f"{nearest(metric, metrics)}"
        )


def attempt(history: Sequence[Decision], number: int) -> int:
    """The number of the current attempt at round ``number``, from 1."""
    return 1 + sum(
        decision.round == number and decision.action == "back-off" for decision in history
    )


def extensions(history: Sequence[Decision], number: int) -> list[Decision]:
    """The decisions to extend recovery in the current attempt at round ``number``, in order."""
    now = number, attempt(history, number)
    return [
        decision
        for decision in history
        if (decision.round, decision.attempt) == now and decision.action == "extend"
    ]


def has_passed(history: Sequence[Decision], number: int) -> bool:
    """Whether round ``number`` has passed the gate."""
    return any(decision.round == number and decision.action == "pass" for decision in history)


def stop(history: Sequence[Decision]) -> Decision | None:
    """The decision that stopped the run, or None; nothing follows it, so it is the last."""
    return history[-1] if history and history[-1].action == "stop" else None


def decide(
    gate: Gate,
    history: Sequence[Decision],
    step: "Round",
    *,
    removed: int,
    measured: float | None,
    tokens: int,
    given: int,
    trains: bool,
    max_extra_recovery: float,
    next_step: int | None,
    reason: str | None,
) -> Decision:
    """Apply the quality gate after a round's recovery or an extension; return the decision.

    Args:
        history: all decisions of the run so far.
        step: the round.
        removed: neurons per layer, or layers, that the round removed.
        measured: the gate's metric; None if recovery diverged, which no extension repairs.
        tokens: tokens that the recovery, or the extension, trained on.
        given: the round's token budget; with early stopping it may have trained on fewer, or none.
        trains: whether recovery trains at all; if not, there is nothing to extend.
        max_extra_recovery: largest extra training, as a fraction of ``given``.
        next_step: the next smaller step for a back-off; None if there is none.
        reason: why there is none.
    """
    extra = extensions(history, step.number)
    made = Decision(
        round=step.number,
        attempt=attempt(history, step.number),
        extension=len(extra),
        kind=step.kind,
        step=removed,
        task=gate.task,
        metric=gate.metric,
        dense=gate.dense,
        limit=gate.limit,
        higher_is_better=gate.higher_is_better,
        measured=measured,
        tokens=tokens,
        action="pass",
    )
    if gate.passes(measured):
        return made
    # the recovery itself: with extensions, ``tokens`` are the last extension's
    own = extra[0].tokens if extra else tokens
    # fractions of ``given``: the extra allowance, and what early stopping left unused
    allowed = max_extra_recovery + (1 - own / given if given else 0)
    # at most what earlier extensions of this attempt have left
    next_share = min(EXTENSION, allowed - sum(each.next_share or 0 for each in extra))
    if trains and measured is not None and next_share >= SHORTEST:
        return replace(
            made, action="extend", next_share=next_share, next_tokens=round(next_share * given)
        )
    # more training did not help, or cannot be had: remove less
    if next_step is not None:
        return replace(made, action="back-off", next_step=next_step)
    return replace(made, action="stop", reason=reason)


def sentence(decision: Decision) -> str:
    """A decision as one sentence for the console."""
    name = f"round {decision.round}, attempt {decision.attempt}"
    if decision.extension:
        name += f", extension {decision.extension}"
    # the direction of the limit depends on the metric
    bound = "at least" if decision.higher_is_better else "at most"
    if decision.measured is None:
        found = "recovery diverged"
    else:
        measured, limit, dense = told_apart(decision.measured, decision.limit, decision.dense)
        found = (
            f"{decision.task} {decision.metric} is {measured}, {bound} {limit} passes (dense"
            f" {dense})"
        )
    return f"Quality gate, {name}: {found}: {consequence(decision)}."


def unit(decision: Decision) -> str:
    """The unit of a decision's steps, such as neurons a layer."""
    return ROUND_KINDS[decision.kind].unit


def told_apart(*values: float) -> list[str]:
    """Format with four decimals, or with as many more as keep different values different."""
    # a value that just fails must not look equal to the limit; float64 has 17 digits at most
    for digits in range(4, 17):
        texts = [f"{value:.{digits}f}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def consequence(decision: Decision) -> str:
    """What follows from a decision, as a clause for the console and the report."""
    if decision.action == "pass":
        return "passed"
    if decision.action == "extend":
        return (
            f"recovery goes on for {decision.next_tokens:,} tokens"
            if decision.next_tokens
            else "recovery goes on"
        )
    if decision.action == "back-off":
        source = (
            f"round {decision.round - 1}'s model" if decision.round > 1 else "the original model"
        )
        return (
            f"back to {source}, with steps of at most {decision.next_step}"
            f" {unit(decision)} instead of {decision.step}"
        )
    return f"the run stops ({decision.reason}); the result is {_result(decision)}"


def stopped_sentence(history: Sequence[Decision]) -> str | None:
    """Say that the quality gate stopped the run, why, and with which model; None if it did not."""
    last = stop(history)
    if last is None:
        return None
    return (
        f"The quality gate stopped this run before its target: round {last.round} failed the gate"
        f" {last.task}:{last.metric}, and"
        f" {last.reason}. The result is {_result(last)}."
    )


def _result(last: Decision) -> str:
    """The model that a stopped run ends with, in words."""
    if last.round == 1:
        return "the original model, unchanged: no round has passed"
    return f"the model after round {last.round - 1}"

"""The quality gate: is the model still good enough after a round, and what happens if it is not?

A round that fails the gate (--gate, --max-drop) first trains longer: on what it was given and did
not use, and up to --max-extra-recovery on top. Then it is undone: back to the model before it, and
half as much is removed. When the smallest step fails too, the run stops with the last model that
passed. Everything here follows from measurements and from the decisions so far, which are on disk;
nothing here trains or measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ptl_fast.baselines import ROUND_KINDS

if TYPE_CHECKING:
    from ptl_fast.pruning.schedule import Round

EXTENSION = 0.5  # of what a round was given: the longest training between two measurements
SHORTEST = 0.01  # of what a round was given: less training is not worth a measurement
ROUNDING = 1e-9  # 0.8 - 0.7 is not above 0.1

Action = Literal["pass", "extend", "back-off", "stop"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a round must reach."""

    task: str
    metric: str
    higher_is_better: bool
    max_drop: float
    dense: float
    """The original model's value."""

    @property
    def limit(self) -> float:
        """The worst value that passes."""
        return self.dense - self.max_drop if self.higher_is_better else self.dense + self.max_drop

    def passes(self, measured: float | None) -> bool:
        """Whether the metric is worse than the dense model's by at most ``max_drop``; a model that
        diverged never passes.
        """
        if measured is None:
            return False
        return (
            self.dense - measured if self.higher_is_better else measured - self.dense
        ) <= self.max_drop + ROUNDING


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was measured after a recovery, or after an extension of it, and what followed."""

    round: int
    attempt: int
    """1 is the first; every back-off begins another."""
    extension: int
    """How often recovery had been extended."""
    kind: str
    step: int
    """How many neurons a layer, or layers, the round removed."""
    task: str
    metric: str
    dense: float
    limit: float
    higher_is_better: bool
    measured: float | None
    """None where recovery diverged."""
    tokens: int
    """That the recovery, or the extension, trained on."""
    action: Action
    next_share: float | None = None
    """With extend: how long the extension is, as a fraction of what the round was given, in tokens
    or in steps.
    """
    next_tokens: int | None = None
    """With extend: the tokens of the extension; 0 where recovery does not train on text."""
    next_step: int | None = None
    """With back-off: the largest step from now on in rounds of this kind."""
    reason: str | None = None
    """With stop: why no smaller step was tried."""

    @property
    def stops(self) -> bool:
        """Whether the run ends before its target."""
        return self.action == "stop"

    @property
    def undoes(self) -> bool:
        """Whether the model before the round is the one to go on with, or to end with."""
        return self.action in ("back-off", "stop")


def parse_gate(entry: str, labels: Sequence[str]) -> tuple[str, str]:
    """Return (task, metric) of --gate TASK:METRIC, where the task is one of the evaluation's
    labels.

    Raises:
        ValueError: the form is another one, or there is no such task.
    """
    task, colon, metric = entry.partition(":")
    if not (task and colon and metric):
        raise ValueError(f"--gate {entry!r} is not of the form TASK:METRIC, such as nll:nll")
    if task not in labels:
        raise ValueError(
            f"--gate {entry}: {task} is none of --eval-tasks; choose {', '.join(labels)}"
        )
    return task, metric


def check_metric(task: str, metric: str, metrics: Sequence[str]) -> None:
    """Raise ValueError when ``metric`` is none of the task's."""
    if metric not in metrics:
        choices = ", ".join(f"{task}:{name}" for name in metrics)
        raise ValueError(f"--gate {task}:{metric}: {task} has no metric {metric}; choose {choices}")


def attempt(history: Sequence[Decision], number: int) -> int:
    """Which attempt at round ``number`` is on."""
    return 1 + sum(
        decision.round == number and decision.action == "back-off" for decision in history
    )


def extensions(history: Sequence[Decision], number: int) -> list[Decision]:
    """The decisions for each extension that this attempt at round ``number`` has had or is having."""
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
    """The decision that ended the run before its target, if there is one: it is the last."""
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
    """Judge a round after its recovery or an extension.

    Args:
        removed: neurons a layer, or layers, that the round removed.
        tokens: that the recovery, or the extension, trained on.
        given: tokens that the round's recovery could have had; where it recovered early, it trained
            on fewer, or none.
        measured: None where recovery diverged; no extension helps then.
        trains: whether recovery is more than doing nothing.
        next_step, reason: from ``smaller_step``.
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
    own = extra[0].tokens if extra else tokens
    allowed = max_extra_recovery + (1 - own / given if given else 0)
    next_share = min(EXTENSION, allowed - sum(each.next_share or 0 for each in extra))
    if trains and measured is not None and next_share >= SHORTEST:
        return replace(
            made, action="extend", next_share=next_share, next_tokens=round(next_share * given)
        )
    if next_step is not None:
        return replace(made, action="back-off", next_step=next_step)
    return replace(made, action="stop", reason=reason)


def sentence(decision: Decision) -> str:
    """A decision, for people."""
    name = f"round {decision.round}, attempt {decision.attempt}"
    if decision.extension:
        name += f", extension {decision.extension}"
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
    """What a decision's steps are counted in."""
    return ROUND_KINDS[decision.kind].unit


def told_apart(*values: float) -> list[str]:
    """The values with four digits after the point, or as many more as it takes that different ones
    look different.
    """
    for digits in range(4, 17):
        texts = [f"{value:.{digits}f}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def consequence(decision: Decision) -> str:
    """What a decision leads to."""
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
    """That the run ended before its target and with what; None where it did not."""
    last = stop(history)
    if last is None:
        return None
    return (
        f"The quality gate stopped this run before its target: round {last.round} failed the gate"
        f" {last.task}:{last.metric}, and"
        f" {last.reason}. The result is {_result(last)}."
    )


def _result(last: Decision) -> str:
    if last.round == 1:
        return "the original model, unchanged: no round has passed"
    return f"the model after round {last.round - 1}"

"""What a run says about itself while it goes on: its stages by name, and how far the whole run is.

Nothing here is part of a run's identity or of its results. The share and the time left are
estimates: the rounds to come take as long as the last finished one or, before there is one, as long
as the stages so far and PRIOR suggest.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptl_fast.base import progress
from ptl_fast.recovery import registry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext

NAMES = {
    "calibrate": "scoring",
    "compact": "pruning",
    "recover": "recovering",
    "evaluate": "evaluating",
}
"""{stage as in seconds.json: what people read}, in a round's order; evaluation also follows
pruning.
"""
PRIOR = {"calibrate": 2.0, "compact": 1.0, "recover": 10.0, "evaluate": 4.0}
"""Seconds in proportion, until a round has shown its own: a guess that only the first round uses.
"""
IDLE_SHARE = 0.05


def stage(
    context: "RunContext", step: "Round", label: str, name: str | None = None
) -> "AbstractContextManager[None]":
    """The stage of a round as the progress display names it, such as "round 2 of 4: recovering".

    Args:
        name: what people read where only a part of the stage goes on; None: the stage's own.

    A stage that has nothing to do, such as evaluation with --eval-tasks none, is not told of.
    """
    prior = _prior(context, step)
    if name is None and not prior[label]:
        return contextlib.nullcontext()
    num_rounds = len(context.rounds.schedule)
    now = context.folder.round(step.number).seconds.found() or {}
    told = f"round {step.number} of {num_rounds}: {name or NAMES[label]}"
    finished = [record["seconds"] for record in context.records]
    # a round that pruning has not hurt trains nothing, which says little about the next one
    if context.config.recovery.recovery_split == "until-recovered":
        finished = [_without_idle_recovery(each) for each in finished]
    return progress.stage(told, share_of(finished, now, label, num_rounds - step.number, prior))


def share_of(
    finished: Sequence[Mapping[str, float]],
    now: Mapping[str, float],
    label: str,
    num_later: int,
    prior: Mapping[str, float] = PRIOR,
) -> progress.Share:
    """Return the function that ``progress.stage`` asks.

    Args:
        finished: seconds of each finished round's stages.
        now: of this round's stages so far.
        label: the stage that goes on.
        num_later: rounds after this one.
        prior: seconds of each stage in proportion, until a round has shown its own.
    """

    def answer(seconds: float, loop_left: float | None) -> tuple[float, float | None]:
        spent = now.get(label, 0.0) + seconds
        expected = _expected(finished, now, label, spent, loop_left, prior)
        if expected is None:
            share = sum(prior[each] for each in prior if now.get(each))
            return share / (sum(prior.values()) * (1 + num_later)), None
        labels = list(NAMES)
        # the evaluation of the pruned model comes before recovery
        is_early = label == "evaluate" and not now.get("recover")
        first = labels.index("recover" if is_early else label)
        left = max(loop_left or 0.0, expected[label] * (0.5 if is_early else 1.0) - spent)
        left += sum(expected[each] for each in labels[first:] if each != label)
        left += num_later * sum(expected.values())
        gone = sum(sum(each.values()) for each in finished) + sum(now.values()) + seconds
        return gone / max(gone + left, 1e-9), left

    return answer


def _prior(context: "RunContext", step: "Round") -> Mapping[str, float]:
    """PRIOR, with nothing for a recovery or an evaluation that the round does not have."""
    trains = registry.trains(context.recoveries(step)) and step.recovery_share > 0
    has = {"recover": trains, "evaluate": bool(context.tasks)}
    return {name: seconds if has.get(name, True) else 0.0 for name, seconds in PRIOR.items()}


def _without_idle_recovery(seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of a round, without those of a recovery that hardly took any."""
    is_idle = seconds["recover"] < IDLE_SHARE * sum(seconds.values())
    return {name: each for name, each in seconds.items() if name != "recover" or not is_idle}


def _expected(
    finished: Sequence[Mapping[str, float]],
    now: Mapping[str, float],
    label: str,
    spent: float,
    loop_left: float | None,
    prior: Mapping[str, float],
) -> dict[str, float] | None:
    """Seconds that each stage takes in a whole round; None while nothing is known."""
    if finished:
        return _filled(dict(finished[-1]), prior)
    known = {each: now[each] for each in NAMES if now.get(each) and each != label}
    if loop_left is not None:
        # a round has two evaluations
        is_early = label == "evaluate" and not now.get("recover")
        known[label] = (spent + loop_left) * (2 if is_early else 1)
    return _filled(known, prior) if known else None


def _filled(known: dict[str, float], prior: Mapping[str, float]) -> dict[str, float]:
    """The seconds of all stages, from those of some and the prior."""
    scale = sum(known.values()) / (sum(prior[each] for each in known) or 1.0)
    return {each: known.get(each, prior[each] * scale) for each in NAMES}

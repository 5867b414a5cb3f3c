"""Apply the quality gate after a round's recovery, and undo rounds that failed it.

Each decision is in decisions.json before anything follows from it. A resumed run reads the
decisions back, and so has the same schedule and data as the run that was killed.
"""

import functools
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import say
from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.recovery import registry
from ptl_fast.run import quality_gate, records, recover_step

if TYPE_CHECKING:
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext
    from ptl_fast.run.quality_gate import Decision, Gate


def judge(context: "RunContext", step: "Round", recovered: dict[str, Any]) -> "Decision | None":
    """Decide whether the round passes, recovers for longer, is undone, or ends the run.

    The decision changes the schedule in memory, is written to decisions.json, and is printed.
    Killed before the write, a resumed run decides again from the evaluation on disk, the same way.

    Args:
        recovered: the round's evaluation; empty if recovery diverged.

    Returns:
        The decision; None if no quality gate holds for this round.
    """
    gate = _gate(context) if context.rounds.is_judged(step) else None
    if gate is None:
        return None
    extension, given = (
        len(context.rounds.extensions(step.number)),
        recover_step.tokens_left(context)[0],
    )
    # tokens of the recovery, or the extension, that was just evaluated
    recovery = context.folder.round(step.number).recovery(extension).read()
    decision = context.rounds.decide(
        gate,
        step,
        measured=float(recovered[gate.task][gate.metric]) if recovered else None,
        tokens=recovery["recovery_tokens"],
        given=given,
        trains=_trains(context, given),
        max_extra_recovery=context.config.gate.max_extra_recovery,
        lacks=_lacks(context, step),
    )
    # in memory first: it appends to the list of decisions that is then written
    context.follow(decision)
    context.folder.decisions.write(context.rounds.decisions_as_json())
    say(quality_gate.sentence(decision))
    return decision


def put_aside_failed_rounds(context: "RunContext") -> None:
    """Rename the folder of each attempt that the gate has undone to round-NN.failed-K.

    The folder keeps its plan and statistics and gets a record, and loses its weights. Safe to
    repeat: an attempt that was put aside before is left as it is.
    """
    # all of them, not only the last: this also completes what a killed run left half done
    for decision in context.rounds.failed_attempts():
        failed = context.folder.put_aside(decision.round, decision.attempt)
        failed.record.once(functools.partial(records.of_round, context, failed))


def _gate(context: "RunContext") -> "Gate":
    """The metric's limit for all rounds; needs the evaluation of the original model."""
    assert context.rounds.gate_on is not None
    assert context.config.gate.max_drop is not None
    task, metric = context.rounds.gate_on
    measured = context.dense["eval"][task]
    # before the evaluation, only the metrics that the task announces could be checked
    quality_gate.check_metric(task, metric, list(measured))
    return quality_gate.Gate(
        task=task,
        metric=metric,
        higher_is_better=eval_tasks.metrics(context.inputs.loaded_tasks.get(task))[metric],
        max_drop=context.config.gate.max_drop,
        dense=measured[metric],
    )


def _trains(context: "RunContext", given: int) -> bool:
    """Whether recovery trains at all, on tokens of text or on problems, and so can be extended."""
    own = registry.find(context.config.recovery.recoveries)
    return given > 0 or any(each.on_problems for each in own)


def _lacks(context: "RunContext", step: "Round") -> str | None:
    """Why the round's data is too small to be split between smaller steps; None if it is not."""
    next_step, _ = context.rounds.smaller_step(step)
    if next_step is None:
        return None
    # a smaller step means more rounds on the same data, each with a part of its own
    groups = context.rounds.split(step.number, next_step)
    own = registry.find(context.config.recovery.recoveries)
    return context.data.lacks(groups, any(each.on_problems for each in own))

"""After a round's recovery: what the quality gate decides, written down before it happens."""

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
    """With a gate, decide what follows from the evaluation of a round, and write it down before it
    does.

    Args:
        recovered: the evaluation; empty where recovery diverged.
    """
    gate = _gate(context) if context.rounds.is_judged(step) else None
    if gate is None:
        return None
    extension, given = (
        len(context.rounds.extensions(step.number)),
        recover_step.tokens_left(context)[0],
    )
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
    context.follow(decision)
    context.folder.decisions.write(context.rounds.decisions_as_json())
    say(quality_gate.sentence(decision))
    return decision


def put_aside_failed_rounds(context: "RunContext") -> None:
    """Rename the folders of attempts that the gate has undone; they keep plan and record. What is
    done is not done again.
    """
    for decision in context.rounds.failed_attempts():
        failed = context.folder.put_aside(decision.round, decision.attempt)
        failed.record.once(functools.partial(records.of_round, context, failed))


def _gate(context: "RunContext") -> "Gate":
    """What rounds must reach, once the original has been measured."""
    assert context.rounds.gate_on is not None
    assert context.config.gate.max_drop is not None
    task, metric = context.rounds.gate_on
    measured = context.dense["eval"][task]
    quality_gate.check_metric(task, metric, list(measured))
    return quality_gate.Gate(
        task=task,
        metric=metric,
        higher_is_better=eval_tasks.metrics(context.inputs.lm_eval_tasks.get(task))[metric],
        max_drop=context.config.gate.max_drop,
        dense=measured[metric],
    )


def _trains(context: "RunContext", given: int) -> bool:
    """Whether there is training to be made longer: tokens of text, or steps on problems."""
    own = registry.find(context.config.recovery.recoveries)
    return given > 0 or any(each.on_problems for each in own)


def _lacks(context: "RunContext", step: "Round") -> str | None:
    """What half of the step would lack of data, if it lacks something."""
    next_step, _ = context.rounds.smaller_step(step)
    if next_step is None:
        return None
    groups = context.rounds.split(step.number, next_step)
    own = registry.find(context.config.recovery.recoveries)
    return context.data.lacks(groups, any(each.on_problems for each in own))

"""The loop: prune, recover, measure, decide, round after round, until the target.

Each stage's result is on disk before the next begins, so the same command continues a run that was
killed, and what is on disk is not computed again.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ptl_fast.base.console import say
from ptl_fast.base.errors import Diverged
from ptl_fast.model import loading
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.run import gate_step, prune_step, publish, records, recover_step, report, tables
from ptl_fast.run.evaluate_step import evaluate, measure_dense
from ptl_fast.run.prepare import load_weights, prepare
from ptl_fast.run.rounds import kind_of

if TYPE_CHECKING:
    from ptl_fast.config.config import Config
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext
    from ptl_fast.run.quality_gate import Decision

T = TypeVar("T")

STAGES = ("calibrate", "compact", "recover", "evaluate")


def run(config: "Config") -> dict[str, Any]:
    """Run, or continue, a compression; returns the content of report.json."""
    context = prepare(config)
    gate_step.put_aside_failed_rounds(context)
    context.dense = context.folder.dense.once(lambda: measure_dense(context))
    while len(context.records) < len(context.rounds.schedule):
        run_round(context, context.rounds.schedule[len(context.records)])
        publish.write_report(context)
        say("\n" + tables.table(context.dense, context.records) + "\n")
    return publish.finish(context)


def run_round(context: "RunContext", step: "Round") -> None:
    """Prune and recover once. If the quality gate undoes it, the model before is there again, and
    the schedule is another one.
    """
    files, already_passed = (
        context.folder.round(step.number),
        context.rounds.has_passed(step.number),
    )
    decision = None if already_passed else attempt(context, step)
    if decision is not None and decision.undoes:
        gate_step.put_aside_failed_rounds(context)
        if context.rounds.schedule[len(context.records) :]:
            load_weights(context, len(context.records))
        return
    files.keep_extension(len(context.rounds.extensions(step.number)))
    if already_passed:  # and killed before its record was written
        load_weights(context, step.number)
    files.record.write(records.of_round(context, files))
    context.folder.remove_old_weights(step.number, context.config.run.keep_rounds)
    context.records.append(files.record.read())


def attempt(context: "RunContext", step: "Round") -> "Decision | None":
    """Plan, prune and recover, and go on recovering as long as the quality gate says so."""
    plan_file = context.folder.round(step.number).plan
    decide = functools.partial(prune_step.plan_round, context, step)
    plan = PruningPlan(**plan_file.once(lambda: _stage(context, step, "calibrate", decide)))
    share = 0.0 if plan.removes_nothing else step.recovery_share
    step = dataclasses.replace(step, width=plan.width, recovery_share=share)
    if plan.num_redundant is not None:
        before = (context.records[-1] if context.records else context.dense)["width"]
        say(report.redundant_line(step.number, plan.num_redundant, before - plan.width))
    while True:
        extension = len(context.rounds.extensions(step.number))
        decision = gate_step.judge(context, step, recovered(context, step, plan, extension))
        if decision is None or decision.action != "extend":
            return decision


def recovered(
    context: "RunContext", step: "Round", plan: PruningPlan, extension: int
) -> dict[str, Any]:
    """Train, and evaluate what came of it; nothing where it diverged, which the quality gate will
    undo.
    """
    files = context.folder.round(step.number)
    evaluated, recovery = files.recovered(extension), files.recovery(extension)
    try:
        train(context, step, plan, extension)
        unchanged = None
        if not recover_step.has_trained(recovery.read()):
            unchanged = files.pruned.read()
        measure = functools.partial(evaluate, context, f"round {step.number} recovered")
        return evaluated.once(lambda: unchanged or _stage(context, step, "evaluate", measure))
    except Diverged as error:
        if not context.rounds.is_judged(step):
            raise
        spent = recovery.read() or {"recovery_tokens": 0, "recovery_steps": 0, "checks": []}
        recovery.write({**spent, "diverged": str(error)})
        evaluated.write({})
        return {}


def train(context: "RunContext", step: "Round", plan: PruningPlan, extension: int) -> None:
    """Leave in memory and on disk the model after the round's recovery, or after an extension."""
    files = context.folder.round(step.number)
    saved = files.model(extension)
    if saved.exists():
        load_weights(context, step.number, extension)
        return
    if extension:
        load_weights(context, step.number, extension - 1)
    else:
        _prune(context, step, plan)
    recover = functools.partial(recover_step.recover_round, context, step, extension)
    _stage(context, step, "recover", recover)
    saved.save(context.model, context.inputs.tokenizer)
    if extension:
        files.model(extension - 1).remove()


def _prune(context: "RunContext", step: "Round", plan: PruningPlan) -> None:
    """Make the model smaller, and measure what that costs."""
    files = context.folder.round(step.number)
    # a checkpoint inside the recovery replaces the weights, so least squares need not be repeated
    weights_follow = files.pruned.exists() and recover_step.goes_on(context, step)
    prune = functools.partial(prune_step.prune, context, step, plan, weights_follow=weights_follow)
    _stage(context, step, "compact", prune)
    unchanged = None
    if not kind_of(step).removes:
        unchanged = (context.records[-1] if context.records else context.dense)["eval"]
    measure = functools.partial(evaluate, context, f"round {step.number} pruned")
    files.pruned.once(lambda: unchanged or _stage(context, step, "evaluate", measure))


def _stage(context: "RunContext", step: "Round", label: str, compute: Callable[[], T]) -> T:
    """Run a stage of a round from a seed of its own, and add its seconds to those on disk."""
    loading.seed_everything(context.config.run.seed * 1000 + step.number)
    start = time.perf_counter()
    value = compute()
    kept = context.folder.round(step.number).seconds
    seconds = kept.read() or dict.fromkeys(STAGES, 0.0)
    seconds[label] += time.perf_counter() - start
    kept.write(seconds)
    return value

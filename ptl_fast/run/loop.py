"""The Prune-Tune Loop: prune, recover, evaluate, decide, round after round, until the target size.

Every stage writes its result to the run's folder before the next stage begins, and is skipped if
its result is already there. A killed run is resumed by the same command: it loads the newest saved
weights and goes on with the first stage that has no result. The schedule, the data and each
stage's random numbers depend on the settings and on these files alone, so a resumed run ends with
the same model as an uninterrupted one.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from ptl_fast.base import progress
from ptl_fast.base.console import columns, say
from ptl_fast.base.errors import Diverged
from ptl_fast.base.stored import remove
from ptl_fast.model import loading, precision
from ptl_fast.model.widths import ffn_width
from ptl_fast.recovery import registry
from ptl_fast.recovery.task import RecoveryResult
from ptl_fast.run import (
    gate_step,
    narration,
    plan_line,
    prune_step,
    publish,
    records,
    recover_step,
    report,
    save_step,
    save_streamed,
    stream_step,
    tables,
    trace_step,
    track_step,
    verdict,
)
from ptl_fast.run.evaluate_step import evaluate, measure_dense
from ptl_fast.run.folder import read_plan
from ptl_fast.run.prepare import prepare
from ptl_fast.run.rounds import kind_of
from ptl_fast.run.weights import load_later, load_weights

if TYPE_CHECKING:
    from ptl_fast.config.config import Config
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import Callback, RunContext
    from ptl_fast.run.quality_gate import Decision

T = TypeVar("T")

STAGES = ("calibrate", "compact", "recover", "evaluate")


def run(config: "Config", callbacks: "Sequence[Callback]" = ()) -> dict[str, Any]:
    """Compress a model, or resume an interrupted run, up to the folder final/.

    Args:
        callbacks: called after each round with its record and the model in memory.

    Returns:
        The content of report.json.

    Raises:
        ValueError: a setting, the model or the data does not fit, or the folder holds another run.
        Diverged: a loss or an evaluation is NaN or infinite, and no quality gate handles it.
    """
    with progress.stage("reading the model and the data"):
        context = prepare(config)
    # the last process may have been killed between the gate's decision and what follows from it
    gate_step.put_aside_failed_rounds(context)
    trace_step.make(context)
    steps = recover_step.steps_left(context)
    verdict.check_steps(steps, config.trainer.global_batch)
    refitted = prune_step.tokens_refitted_to(context)
    # a run with nothing left to do has loaded no model
    width = context.records[-1]["width"] if context.records else ffn_width(context.original)
    for line in (
        plan_line.line(context),
        verdict.few_steps_line(steps),
        verdict.few_tokens_line(refitted, width),
    ):
        if line is not None:
            say(line)
    measures = context.tasks or context.inputs.checked_documents
    with progress.stage("evaluating the original model") if measures else nullcontext():
        context.dense = context.folder.dense.once(lambda: _measure_dense(context))
    track_step.log_new(context)
    # killed after a round and before its report: the round's weights would soon be deleted
    if 0 < len(context.records) < len(context.rounds.schedule):
        publish.write_report(context)
    shown = 0  # rows of the table that were printed
    # not a for loop: the quality gate may make the schedule longer, or end it here
    while len(context.records) < len(context.rounds.schedule):
        finished = len(context.records)
        run_round(context, context.rounds.schedule[finished])
        # a round that the quality gate has undone leaves no record
        for callback in callbacks if len(context.records) > finished else ():
            callback(context.records[-1], context.model)
        publish.write_report(context)
        track_step.log_new(context)
        # a round that was undone has no row
        if len(context.records) > shown:
            say(tables.new_rows(context.dense, context.records, shown, columns()))
            shown = len(context.records)
    with progress.stage("writing the result"):
        return publish.finish(context)


def _measure_dense(context: "RunContext") -> dict[str, Any]:
    """The content of dense.json, also where it was lost and the model in memory is another one."""
    finished = len(context.records)
    if not finished:
        return measure_dense(context)
    # with --stream and nothing to measure, nothing asks for the weights
    load_later(context, 0)
    dense = measure_dense(context)
    load_later(context, finished)
    return dense


def run_round(context: "RunContext", step: "Round") -> None:
    """Prune and recover once, and write the round's record, which marks the round as finished.

    If the quality gate undoes the round there is no record: the model of the round before is
    loaded again, and the schedule has a smaller step in this round's place, or ends.
    """
    files, already_passed = (
        context.folder.round(step.number),
        context.rounds.has_passed(step.number),
    )
    decision = None if already_passed else attempt(context, step)
    if decision is not None and decision.undoes:
        gate_step.put_aside_failed_rounds(context)
        # if the run stops here, nobody needs the weights
        if context.rounds.schedule[len(context.records) :]:
            load_weights(context, len(context.records))
        return
    files.keep_extension(len(context.rounds.extensions(step.number)))
    # an earlier process was killed after the gate's decision and before the record: there was no
    # attempt in this process, so the weights in memory are still those of the round before
    if already_passed:
        load_weights(context, step.number)
    # the record comes before older weights are deleted: a crash never leaves too few of them
    files.record.write(records.of_round(context, files))
    context.folder.remove_old_weights(step.number, context.config.run.keep_rounds)
    context.records.append(files.record.read())


def attempt(context: "RunContext", step: "Round") -> "Decision | None":
    """Plan, prune and recover, and extend recovery as long as the quality gate asks for it.

    Returns:
        The gate's last decision, which passes or undoes the round; None without a gate.
    """
    files = context.folder.round(step.number)
    trace_step.renew(context, step)
    plan_round = prune_step.plan_round
    if stream_step.applies(context, step):
        plan_round = stream_step.plan_round
    decide = functools.partial(plan_round, context, step)
    # the statistics and the plan belong together
    if files.statistics.is_damaged():
        recover_step.check_not_anticipated(context, step, files.statistics)
        files.plan.remove()
    if files.plan.is_damaged():
        recover_step.check_not_anticipated(context, step, files.plan)
    files.plan.once(lambda: _stage(context, step, "calibrate", decide))
    plan = read_plan(files)
    step = dataclasses.replace(step, width=plan.width)
    if plan.num_redundant is not None:
        before = (context.records[-1] if context.records else context.dense)["width"]
        say(report.redundant_line(step.number, plan.num_redundant, before - plan.width))
        # with --threshold the scores decide on the width, and there may be nothing to recover from
        if plan.width == before:
            step = dataclasses.replace(step, recovery_share=0.0)
    # each pass trains once: the round's own recovery (extension 0), then the gate's extensions; a
    # resumed run starts at the extension that the decisions on disk ask for
    while True:
        extension = len(context.rounds.extensions(step.number))
        decision = gate_step.judge(context, step, recovered(context, step, extension))
        if decision is None or decision.action != "extend":
            return decision


def recovered(context: "RunContext", step: "Round", extension: int) -> dict[str, Any]:
    """Train (or load the trained weights), and return the evaluation: {task: {metric: value}}.

    Returns an empty dict if training or evaluation diverged and there is a quality gate, which
    then undoes the round.

    Raises:
        Diverged: the same without a gate.
    """
    files = context.folder.round(step.number)
    evaluated, recovery = files.recovered(extension), files.recovery(extension)
    try:
        train(context, step, extension)
        # no step was trained, so the evaluation of the pruned model still holds
        unchanged = None
        if not recover_step.has_trained(recovery.read()):
            unchanged = files.pruned.read()
        measure = functools.partial(
            evaluate,
            context,
            f"round {step.number} recovered",
            files.recovered_answers(extension),
        )
        found = evaluated.once(lambda: unchanged or _stage(context, step, "evaluate", measure))
        return found if unchanged or extension else _keep_better(context, step, found)
    except Diverged as error:
        if not context.rounds.is_judged(step):
            raise
        # written down as a result, so that the gate's decision and the record have their numbers;
        # the record of recovery is missing if training itself diverged
        spent = recovery.read() or {"recovery_tokens": 0, "recovery_steps": 0, "checks": []}
        recovery.write({**spent, "diverged": str(error)})
        evaluated.write({})
        return {}


def _keep_better(context: "RunContext", step: "Round", recovered: dict[str, Any]) -> dict[str, Any]:
    """Return the round's evaluation, after going back to the pruned model if recovery made it
    clearly worse.

    Safe to repeat: the evaluation on disk becomes the pruned model's last, so that a run which is
    killed before finds the trained one's and comes here again.
    """
    files, pruned = (
        context.folder.round(step.number),
        context.folder.round(step.number).pruned.read(),
    )
    names = context.recoveries(step)
    if context.rounds.is_judged(step) or not verdict.is_worse(context, names, pruned, recovered):
        return recovered
    undone = context.config.recovery.undo_recovery
    files.worse_recovery.write({"eval": recovered, "undone": undone})
    if not undone:
        return recovered
    # without a checkpoint, pruning computes all of the weights again
    remove(
        files.recovery_folder().path,
        files.optimizer_state().path,
        files.next_statistics().path,
        # with --anticipate the next round has a plan already, made for the trained model
        context.folder.round(step.number + 1).path,
    )
    load_weights(context, step.number - 1)
    _prune(context, step)
    context.now.optimizer_state = None
    with narration.stage(context, step, "recover", "saving"):
        save_step.save_model(context, files.model(), context.model)
    files.recovered().write(pruned)
    return pruned


def train(context: "RunContext", step: "Round", extension: int) -> None:
    """Leave in memory and on disk the model after the round's recovery, or after an extension.

    A saved model is only loaded. Otherwise training resumes from its newest checkpoint, or starts
    from the pruned model; an extension starts from what the training before it saved.
    """
    files = context.folder.round(step.number)
    saved, recovery = files.model(extension), files.recovery(extension)
    # without a record of the training, training again makes both
    on_disk = stream_step.stays_on_disk(context, step)
    is_done = saved.exists() and recovery.exists()
    if on_disk:
        if not is_done:
            _leave_on_disk(context, step)
        # a callback, or a round of another kind, may ask for it
        load_later(context, step.number)
        return
    if is_done:
        load_weights(context, step.number, extension)
        return
    if extension:
        # from disk even if it is in memory: the start is the same in a resumed run
        load_weights(context, step.number, extension - 1)
    else:
        _prune(context, step)
    recover = functools.partial(recover_step.recover_round, context, step, extension)
    _stage(context, step, "recover", recover)
    # a large model takes a while to write, and to load again for the comparison
    with narration.stage(context, step, "recover", "saving"):
        save_step.save_model(context, saved, context.model)
    # only now: until the extension is saved, a resumed run needs the weights it started from
    if extension:
        files.model(extension - 1).remove()


def _leave_on_disk(context: "RunContext", step: "Round") -> None:
    """Do ``train`` for a round of which no process has the whole model: shards become the round's
    model, those of pruning or those that a training divided over the ranks has left.
    """
    files = context.folder.round(step.number)
    _stage(context, step, "compact", functools.partial(stream_step.write, context, step))
    files.pruned.write({})
    left = files.streamed
    if not registry.trains(context.recoveries(step)):
        recover_step.write_result(files.recovery(), RecoveryResult())
    else:
        left = files.trained
        # what the training takes is written behind its weights
        if not (files.recovery().exists() and left.is_complete()):
            stream_step.divide(context, step)
            _stage(context, step, "recover", lambda: recover_step.recover_round(context, step, 0))
    with narration.stage(context, step, "recover", "saving"):
        save_streamed.save(context, step, files.model(), left)


def _prune(context: "RunContext", step: "Round") -> None:
    """Make the model in memory smaller, and evaluate it before recovery (pruned.json).

    The pruned weights are not saved: without a checkpoint of the recovery, a resumed run prunes
    the model of the round before again, to the same weights.
    """
    files = context.folder.round(step.number)
    # a checkpoint of this recovery replaces the weights, so compensation (least squares) can be
    # skipped on resume, unless the evaluation of the pruned model is still missing
    weights_follow = files.pruned.exists() and recover_step.goes_on(context, step)
    prune = functools.partial(prune_step.prune, context, step, weights_follow=weights_follow)
    if stream_step.applies(context, step):
        prune = functools.partial(stream_step.prune, context, step)
    _stage(context, step, "compact", prune)
    save_step.check_pruned(context.model)
    # if nothing is trained, this is the model that is saved
    precision.round_(context.model, context.saved_dtype)
    # a round that only trains starts from a model that was already evaluated
    unchanged = None
    if not kind_of(step).removes:
        unchanged = (context.records[-1] if context.records else context.dense)["eval"]
    measure = functools.partial(
        evaluate, context, f"round {step.number} pruned", files.pruned_answers
    )
    files.pruned.once(lambda: unchanged or _stage(context, step, "evaluate", measure))


def _stage(context: "RunContext", step: "Round", label: str, compute: Callable[[], T]) -> T:
    """Run one stage of a round, and add its wall-clock seconds to the round's seconds.json.

    The time of a stage that was killed is not counted; extensions add to that of their stage.
    """
    # seeded for each stage, because a resumed run skips stages that would draw random numbers
    loading.seed_everything(context.config.run.seed * 1000 + step.number)
    start = time.perf_counter()
    try:
        with narration.stage(context, step, label):
            value = compute()
    finally:  # whatever else fails in a folder that is gone, it fails because of that
        context.folder.check_present()
    kept = context.folder.round(step.number).seconds
    seconds = kept.found() or dict.fromkeys(STAGES, 0.0)
    seconds[label] += time.perf_counter() - start
    kept.write(seconds)
    return value

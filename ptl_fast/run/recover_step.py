"""The other half of a round: its recovery, what it is given, and what the quality gate adds to it."""

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import say
from ptl_fast.data import sampling
from ptl_fast.model import families
from ptl_fast.recovery import optimizer_state, registry, token_budget
from ptl_fast.recovery.continual_pretraining import last_part, num_steps
from ptl_fast.recovery.registry import RECOVERIES
from ptl_fast.recovery.task import HeldOutText, RecoveryTask, TrainingOptions
from ptl_fast.run import prune_step, report
from ptl_fast.run.evaluate_step import checked_nll
from ptl_fast.run.rounds import kind_of
from ptl_fast.scoring.statistics import StatisticsCollector, collecting
from ptl_kernels import fused_ffns

if TYPE_CHECKING:
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext


def recover_round(context: "RunContext", step: "Round", extension: int) -> None:
    """Train in place; what later rounds need of it goes to the round's folder."""
    config, now, files = context.config, context.now, context.folder.round(step.number)
    trains = step.recovery_share > 0  # not where --threshold found nothing to remove
    names, following = context.recoveries(step), context.rounds.after(step)
    with contextlib.ExitStack() as stack:
        collector = None
        if config.score.score_during_recovery and trains and following:
            extra = prune_step.needed_statistics(context, following[0])
            collector = stack.enter_context(collecting(now.model, now.family, extra))
        elif _has_own_ffn(context):
            stack.enter_context(fused_ffns(families.feed_forwards(now.model, now.family)))
        task = _task(context, step, extension, collector)
        result = registry.recover(names if trains else [], now.model, task)
    if collector is not None and result.num_steps:
        files.next_statistics(extension).write(collector.total().tensors())
    if result.optimizer_state is not None:
        kept = optimizer_state.to_tensors(result.optimizer_state)
        files.optimizer_state(extension).write(kept)
    for details in result.details.values():
        if details["always_zero"]:
            say(report.unrewarded_line(step.number, details, extension))
    took = {
        "recovery_tokens": result.num_tokens,
        "recovery_steps": result.num_steps,
        "checks": result.checks,
        **result.details,
    }
    files.recovery(extension).write(took)


def has_trained(recovery: dict[str, Any]) -> bool:
    """Whether a round's recovery, by its record, changed the model: with until-recovered it may
    have found nothing to do.
    """
    return recovery["recovery_steps"] > 0 or bool(RECOVERIES.keys() & recovery.keys())


def goes_on(context: "RunContext", step: "Round") -> bool:
    """Whether the round's recovery begins from weights that it kept itself, so that those that
    pruning left are not read.
    """
    names = context.recoveries(step)
    name = registry.goes_on(names, context.folder.round(step.number).checkpoints())
    reads_start = name == names[0] and RECOVERIES[name].reads_start(context.config.grpo)
    return name is not None and not reads_start


def tokens_left(context: "RunContext") -> list[int]:
    """Recovery tokens of each round that is not finished, the next one first.

    Where a round's part of the data holds fewer, recovery sees that part several times.
    """
    recovery, schedule = context.config.recovery, context.rounds.schedule
    own = [step for step in schedule if not kind_of(step).is_final]
    shares = [step.recovery_share for step in own]
    sizes = [tokens.num_tokens for tokens in context.data.training]
    spent = [record["recovery_tokens"] for record in context.records[: len(own)]]
    if any(RECOVERIES[name].on_text for name in recovery.recoveries):
        left = token_budget.tokens_left(
            recovery.recovery_tokens,
            shares,
            sizes[: len(own)],
            spent,
            shared_as_one=recovery.recovery_split == "until-recovered",
        )
    else:
        left = [0] * (len(own) - len(spent))
    if recovery.final_recovery is None:
        return left
    total = recovery.recovery_tokens
    return [*left, sizes[-1] if total is None else round(schedule[-1].recovery_share * total)]


def _task(
    context: "RunContext", step: "Round", extension: int, collector: StatisticsCollector | None
) -> RecoveryTask:
    """The data that this round recovers with, and how it is to be spent."""
    config, files = context.config, context.folder.round(step.number)
    task = RecoveryTask(
        tokens=_sequences(context, step),
        num_tokens=tokens_left(context)[0],
        name=files.name(extension),
        folder=files.checkpoints(extension),
        log_folder=context.folder.log / files.name(extension),
        tokenizer=context.inputs.tokenizer,
        model=config.model,
        trainer=config.trainer,
        distill=config.distill,
        grpo=config.grpo,
        seed=config.run.seed,
        problems=context.data.corpus.documents[step.number - 1],
        options=dataclasses.replace(
            _options(context, step),
            statistics=collector,
            statistics_tokens=config.score.calibration_tokens,
        ),
        trains_on_template=any(each.on_text for each in context.all_recoveries()),
        has_own_ffn=_has_own_ffn(context),
    )
    return _extended(context, task, step, extension) if extension else task


def _extended(
    context: "RunContext", task: RecoveryTask, step: "Round", extension: int
) -> RecoveryTask:
    """The task of an extension of recovery: the round's data once more in another order, for the
    tokens or steps that the quality gate allows.
    """
    decision, kept = context.rounds.extensions(step.number)[-1], None
    assert decision.next_tokens is not None
    assert decision.next_share is not None
    files = context.folder.round(step.number)
    before = files.optimizer_state(extension - 1)
    if before.exists():  # not wherever --keep-optimizer-state is: nothing may have trained so far
        kept = optimizer_state.from_tensors(before.read())
    options = dataclasses.replace(
        task.options, schedule_position=None, held_out=None, optimizer_state=kept
    )
    task = dataclasses.replace(
        task, num_tokens=decision.next_tokens, options=options, seed=task.seed + extension
    )
    own = files.recovery().read()
    for name in RECOVERIES.keys() & own.keys():  # those that have steps of their own
        task = RECOVERIES[name].shortened(task, decision.next_share, own[name])
    return task


def _options(context: "RunContext", step: "Round") -> TrainingOptions:
    """How the settings want this round's tokens spent."""
    recovery, following = context.config.recovery, context.rounds.after(step)
    anticipates = recovery.anticipate > 0 and bool(following)
    anticipates = anticipates and kind_of(following[0]).size == "width"
    judged = context.rounds.is_judged(step)  # an extension may go on from the optimizer's state
    return TrainingOptions(
        schedule_position=_schedule_position(context, step),
        held_out=_held_out(context) if following and context.inputs.checked_documents else None,
        make_penalty=functools.partial(prune_step.next_penalty, context, following[0])
        if anticipates
        else None,
        optimizer_state=context.now.optimizer_state,
        keep_optimizer_state=recovery.keep_optimizer_state and (bool(following) or judged),
    )


def _schedule_position(context: "RunContext", step: "Round") -> tuple[int, int] | None:
    """With --lr-schedule run, the optimizer steps of the rounds before and after this one."""
    if context.config.recovery.lr_schedule != "run" or kind_of(step).is_final:
        return None
    following = context.rounds.after(step)
    later = zip(
        context.data.training[step.number :],
        tokens_left(context)[1 : 1 + len(following)],  # without the final recovery
        strict=False,
    )
    batch = context.config.trainer.global_batch
    before = sum(record["recovery_steps"] for record in context.records)
    return before, sum(num_steps(tokens, num_tokens, batch) for tokens, num_tokens in later)


def _held_out(context: "RunContext") -> HeldOutText:
    documents, tokenizer = context.inputs.checked_documents, context.inputs.tokenizer
    return HeldOutText(
        nll=functools.partial(checked_nll, context),
        num_tokens=sum(map(len, sampling.tokenize(documents, tokenizer))),
        recovered=context.dense["checked_nll"] + context.config.recovery.recovered_within,
    )


def _sequences(context: "RunContext", step: "Round") -> "PackedTokens":
    """The round's own part of the data; with until-recovered, followed by what earlier rounds did
    not come to of theirs.
    """
    config, parts = context.config, context.data.training[: step.number]
    if config.recovery.recovery_split != "until-recovered" or kind_of(step).is_final:
        return parts[-1]
    steps = [record["recovery_steps"] for record in context.records]
    return last_part(parts, steps, config.trainer.global_batch, config.run.seed)


def _has_own_ffn(context: "RunContext") -> bool:
    """Whether recovery trains on ptl_kernels' fused FFN."""
    config = context.config
    return config.trainer.fused_ffn or config.score.score_during_recovery

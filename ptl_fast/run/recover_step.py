"""The second half of a round: the task that its recovery is given, and the files that it leaves.

An *extension* is further training that the quality gate asks for after a recovery. Extensions are
numbered from 1, and 0 is the round's own recovery; each has its own checkpoints and files.
"""

import contextlib
import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.console import say
from ptl_fast.base.run_files import Checkpoint
from ptl_fast.base.stored import DAMAGED, Stored
from ptl_fast.data import sampling
from ptl_fast.model import families
from ptl_fast.recovery import optimizer_state, registry, token_budget
from ptl_fast.recovery.continual_pretraining import last_part, num_steps
from ptl_fast.recovery.registry import RECOVERIES
from ptl_fast.recovery.task import HeldOutText, RecoveryResult, RecoveryTask, TrainingOptions
from ptl_fast.run import inputs, prune_step, rollout_report, track_step
from ptl_fast.run.evaluate_step import checked_nll
from ptl_fast.run.rounds import kind_of
from ptl_fast.scoring.statistics import StatisticsCollector, collecting
from ptl_kernels import fused_ffns

if TYPE_CHECKING:
    from ptl_fast.base.stored import JsonFile
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext


def recover_round(context: "RunContext", step: "Round", extension: int) -> None:
    """Train the model in place, and write what the training took to the round's folder.

    recovery.json gets tokens, optimizer steps and held-out checks. With --score-during-recovery
    the next round's statistics are written too, and with --keep-optimizer-state the Adam moments.
    The caller saves the weights: a run killed before that repeats this from the last checkpoint.
    """
    config, now, files = context.config, context.now, context.folder.round(step.number)
    trains = step.recovery_share > 0  # False if --threshold found nothing to remove
    names, following = context.recoveries(step), context.rounds.after(step)
    with contextlib.ExitStack() as stack:
        # the collector reads the activations inside the fused FFN, so it brings its own
        collector = None
        if config.score.score_during_recovery and trains and following:
            extra = prune_step.needed_statistics(context, following[0])
            collector = stack.enter_context(collecting(now.model, now.family, extra))
        elif _has_own_ffn(context):
            stack.enter_context(fused_ffns(families.plain_ffns(now.model, now.family)))
        task = _task(context, step, extension, collector)
        result = registry.recover(names if trains else [], now.model, task)
    # without a step nothing was counted, and the next round makes a calibration pass instead
    if collector is not None and result.num_steps:
        files.next_statistics(extension).write(collector.total().tensors())
    if result.optimizer_state is not None:
        kept = optimizer_state.to_tensors(result.optimizer_state)
        files.optimizer_state(extension).write(kept)
    # nothing is learned from rewards that are always zero; the loss alone would not show it
    for name, details in result.details.items():
        if RECOVERIES[name].is_rewarded and details["always_zero"]:
            say(rollout_report.unrewarded_line(step.number, details, extension))
    write_result(files.recovery(extension), result)


def write_result(recovery: "JsonFile", result: RecoveryResult) -> None:
    """Write what a training took: recovery.json."""
    took = {
        "recovery_tokens": result.num_tokens,
        "recovery_steps": result.num_steps,
        "checks": result.checks,
        **result.details,
    }
    recovery.write(took)


def has_trained(recovery: dict[str, Any]) -> bool:
    """Whether a recovery changed the model, according to its recovery.json.

    With --recovery-split until-recovered, a round that is good enough after pruning trains nothing.
    """
    # methods on problems count their steps in their own details, under their names
    return recovery["recovery_steps"] > 0 or bool(RECOVERIES.keys() & recovery.keys())


def goes_on(context: "RunContext", step: "Round") -> bool:
    """Whether the round's recovery resumes from its own checkpoint, so that the pruned model's
    weights are not used and only its shapes matter.
    """
    names = context.recoveries(step)
    name = registry.goes_on(names, context.folder.round(step.number).recovery_folder())
    # GRPO with a KL penalty compares with the weights it started from, also after a resume; for a
    # method that comes second, those are in the task's folder
    reads_start = name == names[0] and RECOVERIES[name].reads_start(context.config.grpo)
    return name is not None and not reads_start


def check_ranks(context: "RunContext", step: "Round") -> None:
    """Raise ValueError if the round's training was begun with another number of ranks, and ZeRO has
    divided the optimizer state among them: with the state of some, or none, it would go on as
    another training.
    """
    trainer, launched = context.config.trainer, "WORLD_SIZE" in os.environ
    uses = trainer.deepspeed is not None and (launched or context.device != "cpu")
    num_ranks = distributed.world_size()
    for path in sorted(context.folder.round(step.number).path.glob("**/checkpoint-*")):
        found = Checkpoint(path)
        fits = found.is_of_deepspeed == uses and found.num_shards in (0, num_ranks)
        if fits or not found.exists():
            continue
        began, now = _trained(found.is_of_deepspeed, found.num_shards), _trained(uses, num_ranks)
        raise ValueError(
            f"{path}: training was begun {began} and would go on {now}, where the optimizer state"
            " is divided otherwise; start as before, or delete"
            f" {path.parent} to repeat round {step.number}'s recovery"
        )


def tell_damaged_checkpoints(context: "RunContext", step: "Round") -> None:
    """Say which of the round's checkpoints were complete, and are not whole now: its training goes
    on from another one, or begins again.
    """
    paths = sorted(context.folder.round(step.number).path.glob("**/checkpoint-*"))
    for path in paths if distributed.is_main() else ():
        if Checkpoint(path).was_complete and not Checkpoint(path).is_whole():
            say(f"{path} {DAMAGED}: round {step.number}'s training goes on without it.")


def _trained(by_deepspeed: bool, num_ranks: int) -> str:
    return f"with DeepSpeed on {num_ranks or 1} ranks" if by_deepspeed else "without DeepSpeed"


def tokens_left(context: "RunContext") -> list[int]:
    """Recovery tokens of each unfinished round, the next one first; 0 without training on text.

    If a round's part of the data holds fewer tokens, recovery goes over that part several times.
    """
    recovery, schedule = context.config.recovery, context.rounds.schedule
    own = [step for step in schedule if not kind_of(step).is_final]
    shares = [step.recovery_share for step in own]
    sizes = [tokens.num_tokens for tokens in context.data.training]
    # with until-recovered, what early rounds did not spend goes to the later ones
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
    # it may be finished, and the run killed before its result was published
    if recovery.final_recovery is None or len(context.records) == len(schedule):
        return left
    # the tokens of --final-recovery come on top of the other rounds'
    total = recovery.recovery_tokens
    return [*left, sizes[-1] if total is None else round(schedule[-1].recovery_share * total)]


def steps_left(context: "RunContext") -> dict[int, int]:
    """{unfinished round: optimizer steps of its training on text, at most}; each method's if
    several of its methods train on text.
    """
    finished, left = len(context.records), tokens_left(context)
    steps = {}
    for step, num_tokens in zip(context.rounds.schedule[finished:], left, strict=True):
        on_text = sum(each.on_text for each in registry.find(context.recoveries(step)))
        if on_text:
            tokens, batch = (
                context.data.training[step.number - 1],
                context.config.trainer.global_batch,
            )
            steps[step.number] = num_steps(tokens, num_tokens // on_text, batch)
    return steps


def _task(
    context: "RunContext", step: "Round", extension: int, collector: StatisticsCollector | None
) -> RecoveryTask:
    """The round's data, settings and folders, as the recovery methods want them."""
    config, files = context.config, context.folder.round(step.number)
    task = RecoveryTask(
        tokens=_sequences(context, step),
        num_tokens=tokens_left(context)[0],
        name=files.name(extension),
        folder=files.recovery_folder(extension),
        log_folder=context.folder.log / files.name(extension),
        run_name=track_step.name_of(context, files.name(extension)),
        tokenizer=context.inputs.tokenizer,
        model=config.model,
        trainer=config.trainer,
        distill=config.distill,
        opd=config.opd,
        grpo=config.grpo,
        seed=config.run.seed,
        problems=context.data.corpus.documents[step.number - 1],
        options=dataclasses.replace(
            _options(context, step),
            statistics=collector,
            statistics_tokens=config.score.calibration_tokens,
        ),
        trains_on_template=inputs.trains_on_template(config, context.inputs.tokenizer),
        has_own_ffn=_has_own_ffn(context),
        leave=context.now.leave,
    )
    return _extended(context, task, step, extension) if extension else task


def _extended(
    context: "RunContext", task: RecoveryTask, step: "Round", extension: int
) -> RecoveryTask:
    """The task of an extension: the round's data once more, in another order, for the tokens or
    steps that the quality gate allows.

    The optimizer goes on where the recovery before it ended, if its state was kept.
    """
    decision, kept = context.rounds.extensions(step.number)[-1], None
    assert decision.next_tokens is not None
    assert decision.next_share is not None
    files = context.folder.round(step.number)
    before = files.optimizer_state(extension - 1)
    # missing without --keep-optimizer-state, and if nothing has trained so far
    if before.given():
        kept = optimizer_state.from_tensors(before.read())
    # the gate has found too little quality: no early stop, and no place in a schedule over rounds
    options = dataclasses.replace(
        task.options, schedule_position=None, held_out=None, optimizer_state=kept
    )
    task = dataclasses.replace(
        task, num_tokens=decision.next_tokens, options=options, seed=task.seed + extension
    )
    own = files.recovery().read()
    # methods that count in steps of their own, not in tokens, have their details in the record
    for name in RECOVERIES.keys() & own.keys():
        task = RECOVERIES[name].shortened(task, decision.next_share, own[name])
    return task


def _options(context: "RunContext", step: "Round") -> TrainingOptions:
    """How this round trains on text: schedule, early stop, penalty and optimizer state."""
    recovery, following = context.config.recovery, context.rounds.after(step)
    anticipates = recovery.anticipate > 0 and bool(following)
    anticipates = anticipates and kind_of(following[0]).size == "width"
    judged = context.rounds.is_judged(step)  # an extension may need the optimizer state
    return TrainingOptions(
        schedule_position=_schedule_position(context, step),
        held_out=_held_out(context) if following and context.inputs.checked_documents else None,
        make_penalty=functools.partial(prune_step.next_penalty, context, following[0])
        if anticipates
        else None,
        optimizer_state=context.now.optimizer_state,
        keep_optimizer_state=recovery.keep_optimizer_state and (bool(following) or judged),
    )


def check_not_anticipated(context: "RunContext", step: "Round", lost: Stored) -> None:
    """Raise ValueError if the round was planned during the recovery before it (--anticipate): its
    model is past that moment, and would be planned otherwise.
    """
    if context.config.recovery.anticipate and context.records:
        before = context.folder.round(step.number - 1).path
        raise ValueError(
            f"{lost.path} {DAMAGED}, and was made during the round before; delete {before} and"
            f" {lost.path.parent}, and the same command computes both rounds again if the weights"
            " before them were kept (--keep-rounds)"
        )


def _schedule_position(context: "RunContext", step: "Round") -> tuple[int, int] | None:
    """With --lr-schedule run, (optimizer steps of the rounds before, of the rounds after); else
    None: the round has a learning-rate schedule of its own.
    """
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
    """The held-out text of until-recovered, and the NLL at which a round has recovered."""
    documents, tokenizer = context.inputs.checked_documents, context.inputs.tokenizer
    return HeldOutText(
        nll=functools.partial(checked_nll, context),
        num_tokens=sum(map(len, sampling.tokenize(documents, tokenizer))),
        recovered=context.dense["checked_nll"] + context.config.recovery.recovered_within,
    )


def _sequences(context: "RunContext", step: "Round") -> "PackedTokens":
    """The round's part of the data; with until-recovered, followed by the sequences that earlier
    rounds left unread when they stopped early.
    """
    config, parts = context.config, context.data.training[: step.number]
    if config.recovery.recovery_split != "until-recovered" or kind_of(step).is_final:
        return parts[-1]
    steps = [record["recovery_steps"] for record in context.records]
    return last_part(parts, steps, config.trainer.global_batch, config.run.seed)


def _has_own_ffn(context: "RunContext") -> bool:
    """Whether the FFN is ptl_kernels' fused one during recovery."""
    config = context.config
    return config.trainer.fused_ffn or config.score.score_during_recovery

"""The other half of a round: its recovery, what it is given, and what the guard adds to it."""

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import say
from ptl_fast.config.config import Config
from ptl_fast.run import prune_step, quality_gate
from ptl_fast.run.context import next_statistics, optimizer_file
from ptl_fast.run.quality_gate import suffix

if TYPE_CHECKING:
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.recovery.task import Lesson, Watch
    from ptl_fast.recovery.token_budget import HeldOut, Spending
    from ptl_fast.run.context import State


def recover_round(state: "State", step: "Round", extension: int) -> None:
    """Train in place; what later rounds need of it goes to the round's folder."""
    from ptl_fast.model import families
    from ptl_fast.recovery import optimizer_state, registry
    from ptl_fast.run import report
    from ptl_fast.scoring import statistics
    from ptl_kernels import fused_ffns

    trains = step.recovery_share > 0  # not where --threshold found nothing to remove
    names, config = (
        (state.config.final_recoveries if step.kind == "final" else state.config.recoveries),
        state.config,
    )
    if extension:
        names, config = _extended_recoveries(state, step.number, extension)
    with contextlib.ExitStack() as stack:
        watch, rest = None, state.rest(step)
        if state.config.score_during_recovery and trains and rest:
            watch = stack.enter_context(
                statistics.watch(state.model, state.family, prune_step.extra(state, rest[0].kind))
            )
        elif state.config.fused_ffn or state.config.score_during_recovery:
            stack.enter_context(fused_ffns(families.feed_forwards(state.model, state.family)))
        spent = registry.recover(
            names if trains else ["none"],
            state.model,
            _lesson(state, step, extension, watch),
            config,
        )
    if watch is not None and spent.num_steps:
        state.folder.write_tensors(next_statistics(step.number, extension), watch.total().tensors())
    if spent.moments is not None:
        state.folder.write_tensors(
            optimizer_file(step.number, extension), optimizer_state.to_tensors(spent.moments)
        )
    if "grpo" in spent.details and spent.details["grpo"]["always_zero"]:
        say(report.unrewarded_line(step.number, spent.details["grpo"], extension))
    took = {
        "recovery_tokens": spent.num_tokens,
        "recovery_steps": spent.num_steps,
        "checks": spent.checks,
        **spent.details,
    }
    state.folder.write_json(f"round-{step.number:02d}/recovery{suffix(extension)}.json", took)


def has_trained(recovery: dict[str, Any]) -> bool:
    """Whether a round's recovery, by its record, changed the model: with until-recovered it may
    have found nothing to do.
    """
    return recovery["recovery_steps"] > 0 or "grpo" in recovery


def _lesson(state: "State", step: "Round", extension: int, watch: "Watch | None") -> "Lesson":
    """The data that this round recovers with, and how it is to be spent."""
    from ptl_fast.recovery.task import Lesson

    folder, name = state.folder.round(step.number), f"round-{step.number:02d}{suffix(extension)}"
    lesson = Lesson(
        tokens=_sequences(state, step),
        num_tokens=tokens_left(state)[0],
        name=name,
        folder=folder / f"recovery{suffix(extension)}",
        log_folder=state.output / "log" / name,
        tokenizer=state.inputs.tokenizer,
        problems=state.course.corpus.documents[step.number - 1],
        watch=watch,
        spending=_spending(state, step),
    )
    return _extended(state, lesson, step.number, extension) if extension else lesson


def _extended_recoveries(state: "State", number: int, extension: int) -> tuple[list[str], Config]:
    """Which recoveries an extension has, and its settings: the data comes in another order, and
    fewer times.
    """
    own, names = (
        state.folder.read_json(f"round-{number:02d}/recovery.json"),
        state.config.recoveries,
    )
    config = dataclasses.replace(state.config, seed=state.config.seed + extension)
    if "grpo" in own:
        share = quality_gate.extensions(state.course.decisions, number)[-1].next_share
        assert share is not None
        config = dataclasses.replace(config, grpo_steps=max(1, round(share * own["grpo"]["steps"])))
    return names, config


def _extended(state: "State", lesson: "Lesson", number: int, extension: int) -> "Lesson":
    """The lesson of an extension of recovery: the round's data once more, for the tokens that the
    guard allows.
    """
    from ptl_fast.base import distributed
    from ptl_fast.recovery import optimizer_state

    kept, left = None, optimizer_file(number, extension - 1)
    if distributed.agree(
        (state.output / left).is_file()
    ):  # not wherever --keep-optimizer-state is: nothing may have trained so far
        kept = optimizer_state.from_tensors(state.folder.read_tensors(left))
    spending = dataclasses.replace(lesson.spending, position=None, held_out=None, moments=kept)
    allowed = quality_gate.extensions(state.course.decisions, number)[-1].next_tokens
    assert allowed is not None
    return dataclasses.replace(lesson, num_tokens=allowed, spending=spending)


def _spending(state: "State", step: "Round") -> "Spending":
    """How the settings want this round's tokens spent."""
    from ptl_fast.recovery import continual_pretraining, token_budget

    config, rest = state.config, state.rest(step)
    position = None
    if config.lr_schedule == "run" and step.kind != "final":
        later = zip(
            state.training[step.number :], tokens_left(state)[1 : 1 + len(rest)], strict=False
        )  # without the final one
        before = sum(record["recovery_steps"] for record in state.records)
        position = (
            before,
            sum(
                continual_pretraining.num_steps(tokens, num_tokens, config)
                for tokens, num_tokens in later
            ),
        )
    anticipates = config.anticipate > 0 and bool(rest) and rest[0].kind == "neurons"
    return token_budget.Spending(
        position=position,
        held_out=_held_out(state) if rest and state.inputs.checked_documents else None,
        anticipate=functools.partial(prune_step.anticipate_round, state, rest[0])
        if anticipates
        else None,
        moments=state.moments,
        keep_moments=config.keep_optimizer_state
        and (bool(rest) or state.is_judged(step)),  # for an extension
    )


def _held_out(state: "State") -> "HeldOut":
    from ptl_fast.data import sampling
    from ptl_fast.recovery import token_budget

    return token_budget.HeldOut(
        nll=functools.partial(checked_nll, state),
        num_tokens=sum(
            map(len, sampling.tokenize(state.inputs.checked_documents, state.inputs.tokenizer))
        ),
        recovered=state.dense["checked_nll"] + state.config.recovered_within,
    )


def checked_nll(state: "State") -> float:
    """NLL of the held-out text by which rounds know that they have recovered."""
    from ptl_fast.evaluation import nll

    documents, batch_size = state.inputs.checked_documents, state.config.eval_batch
    return nll.answer_nll(
        state.model, state.inputs.tokenizer, documents, batch_size, nll.NLL_MAX_LENGTH
    )[nll.NLL]


def tokens_left(state: "State") -> list[int]:
    """Recovery tokens of each round that is not finished, the next one first.

    Where a round's part of the data holds fewer, recovery sees that part several times.
    """
    from ptl_fast.recovery import token_budget

    rounds = [step for step in state.schedule if step.kind != "final"]
    shares, sizes = (
        [step.recovery_share for step in rounds],
        [tokens.num_tokens for tokens in state.training],
    )
    spent = [record["recovery_tokens"] for record in state.records[: len(rounds)]]
    left = token_budget.tokens_left(state.config, shares, sizes[: len(rounds)], spent)
    if state.config.final_recovery is None:
        return left
    total = state.config.recovery_tokens
    return [*left, sizes[-1] if total is None else round(state.schedule[-1].recovery_share * total)]


def _sequences(state: "State", step: "Round") -> "PackedTokens":
    """The round's own part of the data; with until-recovered, followed by what earlier rounds did
    not come to of theirs.
    """
    from ptl_fast.recovery import continual_pretraining

    parts = state.training[: step.number]
    if state.config.recovery_split != "until-recovered" or step.kind == "final":
        return parts[-1]
    return continual_pretraining.last_part(
        parts, [record["recovery_steps"] for record in state.records], state.config
    )

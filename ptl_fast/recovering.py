"""The other half of a round: its recovery, what it is given, and what the guard adds to it."""

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from ptl_fast import guard, pruning
from ptl_fast.config import Config
from ptl_fast.guard import suffix
from ptl_fast.state import next_statistics, optimizer_file, say

if TYPE_CHECKING:
    from ptl_fast.budget import HeldOut, Spending
    from ptl_fast.data import PackedTokens
    from ptl_fast.lesson import Lesson, Watch
    from ptl_fast.plan import Round
    from ptl_fast.state import State


def recover_round(state: "State", step: "Round", extension: int) -> None:
    """Train in place; what later rounds need of it goes to the round's folder."""
    from ptl_kernels import fused_ffns

    from ptl_fast import calibrate, families, moments, recover, report

    trains = step.recovery_share > 0  # not where --threshold found nothing to remove
    names, config = (state.config.final_recoveries if step.kind == "final" else state.config.recoveries), state.config
    if extension:
        names, config = _extended_recoveries(state, step.number, extension)
    with contextlib.ExitStack() as stack:
        watch, rest = None, state.rest(step)
        if state.config.score_during_recovery and trains and rest:
            watch = stack.enter_context(calibrate.watch(state.model, state.family, pruning.extra(state, rest[0].kind)))
        elif state.config.fused_ffn or state.config.score_during_recovery:
            stack.enter_context(fused_ffns(families.feed_forwards(state.model, state.family)))
        spent = recover.recover(names if trains else ["none"], state.model, _lesson(state, step, extension, watch), config)
    if watch is not None and spent.num_steps:
        state.folder.write_tensors(next_statistics(step.number, extension), watch.total().tensors())
    if spent.moments is not None:
        state.folder.write_tensors(optimizer_file(step.number, extension), moments.to_tensors(spent.moments))
    if "grpo" in spent.details and spent.details["grpo"]["always_zero"]:
        say(report.unrewarded_line(step.number, spent.details["grpo"], extension))
    took = {"recovery_tokens": spent.num_tokens, "recovery_steps": spent.num_steps, "checks": spent.checks, **spent.details}
    state.folder.write_json(f"round-{step.number:02d}/recovery{suffix(extension)}.json", took)


def has_trained(recovery: dict[str, Any]) -> bool:
    """Whether a round's recovery, by its record, changed the model: with until-recovered it may have found nothing to do."""
    return recovery["recovery_steps"] > 0 or "grpo" in recovery


def _lesson(state: "State", step: "Round", extension: int, watch: "Watch | None") -> "Lesson":
    """The data that this round recovers with, and how it is to be spent."""
    from ptl_fast.lesson import Lesson

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
    """Which recoveries an extension has, and its settings: the data comes in another order, and fewer times."""
    own, names = state.folder.read_json(f"round-{number:02d}/recovery.json"), state.config.recoveries
    config = dataclasses.replace(state.config, seed=state.config.seed + extension)
    if "grpo" in own:
        share = guard.extensions(state.course.decisions, number)[-1].next_share
        assert share is not None
        config = dataclasses.replace(config, grpo_steps=max(1, round(share * own["grpo"]["steps"])))
    return names, config


def _extended(state: "State", lesson: "Lesson", number: int, extension: int) -> "Lesson":
    """The lesson of an extension of recovery: the round's data once more, for the tokens that the guard allows."""
    from ptl_fast import moments, ranks

    kept, left = None, optimizer_file(number, extension - 1)
    if ranks.agree((state.output / left).is_file()):  # not wherever --keep-optimizer-state is: nothing may have trained so far
        kept = moments.from_tensors(state.folder.read_tensors(left))
    spending = dataclasses.replace(lesson.spending, position=None, held_out=None, moments=kept)
    allowed = guard.extensions(state.course.decisions, number)[-1].next_tokens
    assert allowed is not None
    return dataclasses.replace(lesson, num_tokens=allowed, spending=spending)


def _spending(state: "State", step: "Round") -> "Spending":
    """How the settings want this round's tokens spent."""
    from ptl_fast import budget, cpt

    config, rest = state.config, state.rest(step)
    position = None
    if config.lr_schedule == "run" and step.kind != "final":
        later = zip(state.training[step.number :], tokens_left(state)[1 : 1 + len(rest)], strict=False)  # without the final one
        before = sum(record["recovery_steps"] for record in state.records)
        position = before, sum(cpt.num_steps(tokens, num_tokens, config) for tokens, num_tokens in later)
    anticipates = config.anticipate > 0 and bool(rest) and rest[0].kind == "neurons"
    return budget.Spending(
        position=position,
        held_out=_held_out(state) if rest and state.inputs.checked_documents else None,
        anticipate=functools.partial(pruning.anticipate_round, state, rest[0]) if anticipates else None,
        moments=state.moments,
        keep_moments=config.keep_optimizer_state and (bool(rest) or state.is_judged(step)),  # for an extension
    )


def _held_out(state: "State") -> "HeldOut":
    from ptl_fast import budget, data

    return budget.HeldOut(
        nll=functools.partial(checked_nll, state),
        num_tokens=sum(map(len, data.tokenize(state.inputs.checked_documents, state.inputs.tokenizer))),
        recovered=state.dense["checked_nll"] + state.config.recovered_within,
    )


def checked_nll(state: "State") -> float:
    """NLL of the held-out text by which rounds know that they have recovered."""
    from ptl_fast import evaluate

    documents, batch_size = state.inputs.checked_documents, state.config.eval_batch
    return evaluate.answer_nll(state.model, state.inputs.tokenizer, documents, batch_size, evaluate.NLL_MAX_LENGTH)[evaluate.NLL]


def tokens_left(state: "State") -> list[int]:
    """Recovery tokens of each round that is not finished, the next one first.

    Where a round's part of the data holds fewer, recovery sees that part several times.
    """
    from ptl_fast import budget

    rounds = [step for step in state.schedule if step.kind != "final"]
    shares, sizes = [step.recovery_share for step in rounds], [tokens.num_tokens for tokens in state.training]
    spent = [record["recovery_tokens"] for record in state.records[: len(rounds)]]
    left = budget.tokens_left(state.config, shares, sizes[: len(rounds)], spent)
    if state.config.final_recovery is None:
        return left
    total = state.config.recovery_tokens
    return [*left, sizes[-1] if total is None else round(state.schedule[-1].recovery_share * total)]


def _sequences(state: "State", step: "Round") -> "PackedTokens":
    """The round's own part of the data; with until-recovered, followed by what earlier rounds did not come to of theirs."""
    from ptl_fast import cpt

    parts = state.training[: step.number]
    if state.config.recovery_split != "until-recovered" or step.kind == "final":
        return parts[-1]
    return cpt.last_part(parts, [record["recovery_steps"] for record in state.records], state.config)

"""Own traces in a run: made before the first round, restored on resume, renewed before a round.

The traces of the original model take the place of --data's documents: calibration, recovery and
distillation then read prompts and the model's own answers, and never the data's. With
--traces-every-round the model as it is before a round answers the round's questions again; its
right answers take the place of the original's, for this round alone.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ptl_fast.base.console import say
from ptl_fast.data import answers, chats, sampling
from ptl_fast.data.generation import Sampling
from ptl_fast.data.readers import Part
from ptl_fast.data.traces import (
    Form,
    Trace,
    Tracer,
    collect,
    fingerprint,
    own_documents,
    summary,
)
from ptl_fast.evaluation import sandbox
from ptl_fast.evaluation.chat import code_of
from ptl_fast.run import inputs, questions, rounds, text, trace_report
from ptl_fast.run.round_data import RoundData

if TYPE_CHECKING:
    from ptl_fast.base.run_files import TraceFolder
    from ptl_fast.data.documents import Document
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext

# Random numbers of one model's answers are apart from those of the next by so many seeds.
SEEDS_PER_MODEL = 2**36


class Made(NamedTuple):
    """The traces of a part of the data."""

    part: Part
    """Whose documents were asked, and its weight."""
    traces: list[Trace]


def restore(context: "RunContext") -> None:
    """Read the original model's traces if they are whole, and train on them from here on.

    Called before the quality gate's decisions are replayed, which divide the data.

    Raises:
        ValueError: files are missing, damaged or changed.
    """
    if context.inputs.questions and context.folder.traces.summary.exists():
        _train_on(context, _collect_all(context, None))
        _check_unchanged(context.folder.traces)


def make(context: "RunContext") -> None:
    """Have the original model answer the data's questions, unless ``restore`` has found its traces,
    and train on them from here on. Then restore what was renewed for rounds.

    Raises:
        ValueError: too few traces are left to train on, or a finished run has lost its traces.
    """
    if not context.inputs.questions:
        return
    files = context.folder.traces
    if not files.summary.exists():
        if context.records:
            raise ValueError(
                f"{files.path} is missing, and its run has gone on from it; put it back, or begin"
                " anew with --overwrite"
            )
        start = time.perf_counter()
        tracer = _tracer(context, 0)
        say(trace_report.beginning(tracer, _num_tokens(context)))
        made = _collect_all(context, tracer)
        _train_on(context, made)
        traces = [trace for each in made for trace in each.traces]
        _finish(context, files, traces, {}, start)
        say(trace_report.sentence(files.summary.read()))
    for number in range(2, len(context.data.training) + 1):
        if context.folder.round(number).traces.summary.exists():
            _replace(context, number, None)
            _check_unchanged(context.folder.round(number).traces)


def renew(context: "RunContext", step: "Round") -> None:
    """With --traces-every-round, have the model in memory answer the round's questions again, or
    read its answers; the round trains on those that are right, and else on the original's.
    """
    # the first round's model is the original
    if not context.config.traces.traces_every_round or step.number == 1:
        return
    files = context.folder.round(step.number).traces
    if files.summary.exists():
        _replace(context, step.number, None)
        return
    start = time.perf_counter()
    traces, num_replaced = _replace(context, step.number, _tracer(context, step.number))
    _finish(context, files, traces, {"kept": num_replaced}, start)
    say(trace_report.sentence(files.summary.read(), step.number))


def summaries(context: "RunContext") -> list[dict[str, Any]]:
    """The summaries of all traces, the original's first; each with the ``round`` before which they
    were made. Empty without --traces.
    """
    folder, found = context.folder, []
    for number in range(len(context.rounds.schedule) + 1):
        files = folder.round(number).traces if number else folder.traces
        content = files.summary.read()
        if content is not None and context.config.traces.traces:
            found.append({"round": max(1, number), **content})
    return found


def _collect_all(context: "RunContext", tracer: Tracer | None) -> list[Made]:
    """The original model's traces of all parts of the data; without a tracer all from disk."""
    settings, num_tokens = context.config.traces, _num_tokens(context)
    made = []
    for source, part in enumerate(context.inputs.questions):
        traces = collect(
            context.folder.traces,
            source,
            list(part.documents),
            tracer,
            num_tokens=None if num_tokens is None else part.weight * num_tokens,
            right_share=settings.right_share,
            seed=_seed(context, 0),
            description=_label(source, len(context.inputs.questions)),
        )
        made.append(Made(part, traces))
    return made


def _label(source: int, num_sources: int) -> str:
    """The progress bar's: a part's name may be a long path."""
    return "own traces" if num_sources == 1 else f"own traces, source {source + 1} of {num_sources}"


def _num_tokens(context: "RunContext") -> float | None:
    """Tokens of all traces that the run needs; see ``questions.num_trace_tokens``."""
    # the schedule that the settings ask for: decisions of the gate come later
    amounts = rounds.data_amounts(context.config, context.rounds.schedule)
    num_tokens = questions.num_trace_tokens(context.config, amounts.num_tokens)
    if num_tokens is None or not context.inputs.checked_documents:
        return num_tokens
    # until-recovered holds some of them out
    return num_tokens / (1 - sampling.HELD_OUT_SHARE)


def _train_on(context: "RunContext", made: Sequence[Made]) -> None:
    """Let the traces that are kept take the place of the data's documents, in memory."""
    config, form = context.config, _form(context)
    asked: dict[Document, Document] = {}
    parts = []
    for part, traces in made:
        pairs = own_documents(form, list(part.documents), traces, config.traces.right_share)
        own = dict(pairs)
        asked |= own
        parts.append(part._replace(documents=list(own)))
    amounts = rounds.data_amounts(config, context.rounds.schedule)
    checks = bool(context.inputs.checked_documents)
    corpus = sampling.split_corpus(
        parts,
        form.tokenizer,
        shares=amounts.shares,
        num_tokens=amounts.num_tokens,
        num_held_out=inputs.NUM_CHECKED if checks else 0,
        seed=config.run.seed,
        keep_documents=True,
        find_answers=text.finds_answers(config),
    )
    # problems keep the data's answers, by which they are judged
    problems = [[asked[document] for document in subset] for subset in corpus.documents]
    corpus = dataclasses.replace(corpus, documents=problems)
    source = ",".join(part.name for part in parts)
    context.data = RoundData.of(config, corpus, form.tokenizer, source)
    if said := context.data.summary(config):
        say(said)
    # a round has recovered when it predicts the original's own answers as before
    if checks:
        checked = inputs.affordable(corpus.held_out, config, form.tokenizer, context.data)
        context.inputs = dataclasses.replace(context.inputs, checked_documents=checked)


def _replace(context: "RunContext", number: int, tracer: Tracer | None) -> tuple[list[Trace], int]:
    """Let a round train on the newer traces that are right, in memory.

    Returns:
        The traces, and how many of them are right.
    """
    corpus, form = context.data.corpus, _form(context)
    documents, ids = corpus.documents[number - 1], corpus.subsets[number - 1]
    traces = collect(
        context.folder.round(number).traces,
        0,
        documents,
        tracer,
        num_tokens=None,
        right_share=1.0,
        seed=_seed(context, number),
        description=f"round {number}: own traces",
    )
    newer = [
        form.document(document, trace)
        for document, trace in zip(documents, traces, strict=True)
        if trace.right
    ]
    finds_answers = text.finds_answers(context.config)
    encoded = chats.encode(newer, form.tokenizer, finds_answers)
    borders_of = corpus.answers[number - 1] if finds_answers else [None] * len(ids)
    older = [
        chats.Encoded(list(own), borders) for own, borders in zip(ids, borders_of, strict=True)
    ]
    context.data.replace(
        number,
        [next(encoded) if trace.right else own for trace, own in zip(traces, older, strict=True)],
    )
    return traces, len(newer)


def _finish(
    context: "RunContext",
    files: "TraceFolder",
    traces: Sequence[Trace],
    other: dict[str, int],
    start: float,
) -> None:
    """Write the summary, which says that the traces are whole."""
    content = {
        **summary(traces, context.config.traces.right_share),
        **other,
        "seconds": round(time.perf_counter() - start, 1),
        "sha256": fingerprint(files),
    }
    files.summary.write(content)


def _check_unchanged(files: "TraceFolder") -> None:
    """Raise ValueError if the traces are not those that the run has begun with."""
    if files.summary.read()["sha256"] != fingerprint(files):
        raise ValueError(
            f"{files.path} holds other traces than this run has begun with; put them back, or"
            " begin anew with --overwrite"
        )


def _form(context: "RunContext") -> Form:
    return Form(tokenizer=context.inputs.tokenizer, request=context.config.traces.traces_prompt)


def _tracer(context: "RunContext", number: int) -> Tracer:
    """The model in memory, as it answers before round ``number`` (0: the original)."""
    settings = context.config.traces
    return Tracer(
        model=context.model,
        form=_form(context),
        sampling=Sampling(
            max_new_tokens=_max_tokens(context),
            temperature=settings.traces_temperature,
            top_p=settings.traces_top_p,
            stop_repeating=True,
        ),
        batch_size=settings.traces_batch,
        judge=functools.partial(judge, runs_code=context.config.evaluation.allow_code_execution),
    )


def _max_tokens(context: "RunContext") -> int:
    """Where answers are cut off."""
    positions = getattr(context.original, "max_position_embeddings", None)
    return context.config.traces.max_tokens(positions)


def _seed(context: "RunContext", number: int) -> int:
    return (context.config.run.seed * 1000 + number) * SEEDS_PER_MODEL


def judge(document: "Document", response: str, *, runs_code: bool) -> bool | None:
    """Whether an answer is right: its code passes the document's tests, or its final answer equals
    the document's; None if there is nothing to compare with.

    Args:
        runs_code: whether code may be executed, in the sandbox.
    """
    if document.tests:
        return sandbox.passes(code_of(response), document.tests) if runs_code else None
    gold = answers.checkable_answer(document.answer)
    return None if gold is None else answers.is_right(gold, response)

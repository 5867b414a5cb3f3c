"""Read a run's inputs: tokenizer, training data, held-out text, evaluation tasks, --protect's text.

Everything is read before the first round, so bad data is refused at once. The inputs' fingerprint
is kept in state.json: a run is not resumed on other data or other weights.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import checksums
from ptl_fast.base.console import say
from ptl_fast.baselines import SCORERS, authors_rule
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.trainer import is_shipped
from ptl_fast.data import packing, readers, sampling, traces
from ptl_fast.data.documents import Form
from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.evaluation.nll import NLL
from ptl_fast.model import checkpoint, companions, loading, padding
from ptl_fast.recovery import prompts, registry, token_budget
from ptl_fast.run import quality_gate, questions, rounds, text
from ptl_fast.run.round_data import RoundData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config.config import Config
    from ptl_fast.data.documents import Document
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.data.readers import Part
    from ptl_fast.data.sampling import Corpus
    from ptl_fast.evaluation.tasks import EvalTask, LoadedTask
    from ptl_fast.pruning.schedule import Round

# Held-out documents: for the evaluation task nll, and for --recovery-split until-recovered. They
# are disjoint, so that no evaluation is of the text by which training was stopped.
NUM_HELD_OUT, NUM_CHECKED = 256, 64


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was read before the first round, without the rounds' training data (RoundData)."""

    tokenizer: "PreTrainedTokenizerBase"
    loaded_tasks: "dict[str, LoadedTask]"
    """Evaluation tasks of lm-evaluation-harness and chat tasks, by label: all but nll."""
    nll_documents: "dict[str, list[Document]]"
    """Documents of the evaluation tasks nll, by label."""
    checked_documents: "list[Document]"
    """Held-out documents for the early stop of --recovery-split until-recovered; else empty."""
    questions: "list[Part]"
    """With --traces: the documents that the model is to answer itself, in their order; a part of
    the data each.
    """
    protected: "Protected | None"
    fingerprint: dict[str, Any]
    """Hashes of all that was read, and of the files of the model and the teacher."""


@dataclass(frozen=True, kw_only=True)
class Protected:
    """A sample of --protect's text: packed sequences, or single documents for a scorer that
    ``reads_samples``.
    """

    tokens: "PackedTokens | None" = None
    samples: Sequence[Sequence[int]] = ()
    """Token ids of each document."""
    fingerprint: str


def load(
    config: "Config", tasks: "list[EvalTask]", schedule: "list[Round]", num_embeddings: int
) -> "tuple[Inputs, RoundData]":
    """Read all inputs, and split the training data among the rounds. Nothing is written.

    Every rank reads the same files and draws the same documents.

    Args:
        num_embeddings: the model's, among which the padding token must be.

    Raises:
        ValueError: the data, a file or the tokenizer does not fit; names the fix.
    """
    name, source = config.model.model, config.data.data
    assert name is not None
    assert source is not None
    tokenizer = loading.load_tokenizer(name, settings=config.model)
    own_revision = config.distill.teacher_revision
    if config.distill.teacher is not None:
        loading.check_teacher(
            config.distill.teacher, tokenizer, ModelSettings(revision=own_revision)
        )
    padding.replace_padding_(tokenizer, num_embeddings)
    loaded = {
        task.label: eval_tasks.load_task(task, tokenizer, config.evaluation)
        for task in tasks
        if task.task != NLL
    }
    # before the data is read, which takes longer
    if config.gate.gate is not None:
        task, metric = quality_gate.parse_gate(config.gate.gate, [each.label for each in tasks])
        quality_gate.check_metric(task, metric, list(eval_tasks.metrics(loaded.get(task))))
    _check_end_of_sequence(config, tokenizer, bool(loaded))

    form = text.make_form(config, tokenizer)
    from_held_out = [task for task in tasks if task.task == NLL and task.file is None]
    num_evaluated = NUM_HELD_OUT if from_held_out else 0
    until_recovered = config.recovery.recovery_split == "until-recovered"
    num_checked = NUM_CHECKED if until_recovered else 0
    corpus, asked = _load_corpus(config, form, tokenizer, schedule, num_evaluated + num_checked)
    data = RoundData.of(config, corpus, tokenizer, source)
    # with --traces other documents are trained on
    if not asked and (said := data.summary(config)):
        say(said)
    # a small corpus may hold out fewer than asked for: share them in the same proportion
    cut = len(corpus.held_out) * num_checked // max(1, num_evaluated + num_checked)
    protected = _load_protected(config, form, tokenizer)
    nll_documents = _nll_documents(config, form, tasks, corpus.held_out[cut:])
    checked: list[Document] = []
    if until_recovered:
        checked = affordable(corpus.held_out[:cut], config, tokenizer, data)
    inputs = Inputs(
        tokenizer=tokenizer,
        loaded_tasks=loaded,
        nll_documents=nll_documents,
        checked_documents=checked,
        questions=asked,
        protected=protected,
        fingerprint={
            "data": corpus.fingerprint,
            "protect": protected.fingerprint if protected is not None else None,
            "nll": {
                label: sampling.fingerprint(documents) for label, documents in nll_documents.items()
            },
            "weights": checkpoint.weights_fingerprint(name, config.model.revision),
            "teacher": checkpoint.weights_fingerprint(config.distill.teacher, own_revision)
            if config.distill.teacher is not None
            else {},
            **_files_fingerprint(config, tasks),
        },
    )
    return inputs, data


def _files_fingerprint(config: "Config", tasks: "list[EvalTask]") -> dict[str, Any]:
    """Hashes of the files beside the weights and the data on which a result depends."""
    assert config.model.model is not None
    own = ModelSettings(revision=config.distill.teacher_revision)
    teacher, deepspeed = config.distill.teacher, config.trainer.deepspeed
    # a shipped one has the package's version
    is_own_file = deepspeed is not None and not is_shipped(deepspeed)
    return {
        **({"deepspeed": checksums.of_path(Path(str(deepspeed)))} if is_own_file else {}),
        "model_files": companions.fingerprint(config.model.model, config.model),
        "teacher_files": companions.fingerprint(teacher, own) if teacher is not None else {},
        # those of nll are compared document by document
        "tasks": {
            each.label: checksums.of_path(Path(each.file))
            for each in tasks
            if each.task != NLL and each.file is not None
        },
    }


def _check_end_of_sequence(
    config: "Config", tokenizer: "PreTrainedTokenizerBase", evaluates: bool
) -> None:
    """Raise ValueError if answers are to be sampled and the tokenizer has no end-of-sequence token.

    Without one, a sampled answer never ends. Training alone can do without it: that is only said.
    """
    if tokenizer.eos_token_id is not None:
        return
    names = config.recovery.all_recoveries
    sampling_names = [name for name in names if registry.RECOVERIES[name].on_problems]
    # most tasks but nll generate text
    sampling_names += ["--eval-tasks"] if evaluates else []
    sampling_names += ["--traces"] if config.traces.traces else []
    if sampling_names:
        raise ValueError(
            f"--model {config.model.model}: {sampling_names[0]} needs a tokenizer with an"
            " end-of-sequence token; set eos_token"
        )
    say(
        f"--model {config.model.model}: its tokenizer has no end-of-sequence token, so that"
        " documents are trained without an end."
    )


def _load_corpus(
    config: "Config",
    form: Form,
    tokenizer: "PreTrainedTokenizerBase",
    schedule: "list[Round]",
    num_held_out: int,
) -> "tuple[Corpus, list[Part]]":
    """Sample --data, hold documents out, and split the others by the rounds' shares of tokens.

    Also returns the questions that the model is to answer itself (``Inputs.questions``).
    """
    source = config.data.data
    assert source is not None
    rollouts = registry.rollouts_of(config.recovery.all_recoveries, config.grpo, config.opd)
    amounts = rounds.data_amounts(config, schedule)
    sample = sampling.draw(
        readers.open_parts(
            source,
            form,
            config.run.seed if config.data.streaming else None,
            config.data.data_revision,
        ),
        tokenizer,
        num_tokens=questions.num_read(config, amounts.num_tokens),
        num_held_out=num_held_out,
        seed=config.run.seed,
        find_answers=text.finds_answers(config),
    )
    corpus = sampling.divide(
        sample,
        shares=amounts.shares,
        num_tokens=amounts.num_tokens,
        keep_documents=bool(rollouts),
    )
    # GRPO needs questions and answers that it can check: refuse the data now, not in its round
    on_template = trains_on_template(config, tokenizer)
    for each, documents in itertools.product(rollouts, corpus.documents):
        prompts.check(documents, tokenizer, each, on_template, source)
    return corpus, questions.to_ask(config, sample)


def trains_on_template(config: "Config", tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a recovery of the run trains on text in --template's form, and not in a chat's."""
    if config.traces.traces and traces.Form(tokenizer=tokenizer).is_chat:
        return False
    return registry.trains_on_text(",".join(config.recovery.all_recoveries))


def _nll_documents(
    config: "Config", form: Form, tasks: "list[EvalTask]", held_out: "list[Document]"
) -> "dict[str, list[Document]]":
    """The documents of each nll task: those of its own file, or the held-out ones.

    Raises:
        ValueError: a task has no document.
    """
    limit = config.evaluation.eval_limit
    documents = {
        task.label: readers.load_documents(task.file, form, limit)
        if task.file
        else held_out[:limit]
        for task in tasks
        if task.task == NLL
    }
    if not all(documents.values()):
        raise ValueError(
            f"{config.data.data} has too few documents to hold some out for nll; give more, or"
            " --eval-tasks nll=FILE"
        )
    return documents


def affordable(
    documents: "list[Document]",
    config: "Config",
    tokenizer: "PreTrainedTokenizerBase",
    data: "RoundData",
) -> "list[Document]":
    """The first of these documents: as many as keep the checks of until-recovered cheap.

    Raises:
        ValueError: there is none, so no round could find out that it has recovered.
    """
    if not documents:
        raise ValueError(
            f"{config.data.data} has too few documents to hold some out for --recovery-split"
            " until-recovered; give more"
        )
    lengths = [len(ids) for ids in sampling.tokenize(documents, tokenizer)]
    num_tokens = config.recovery.recovery_tokens
    num_tokens = num_tokens or sum(tokens.num_tokens for tokens in data.training)
    return documents[: token_budget.num_affordable(lengths, num_tokens, len(data.training))]


def _load_protected(
    config: "Config", form: Form, tokenizer: "PreTrainedTokenizerBase"
) -> Protected | None:
    """Draw a sample of --protect's text; None without --protect."""
    source, length = config.data.protect, config.data.sequence_length
    if source is None:
        return None
    one_by_one = SCORERS[config.score.scorer].reads_samples
    # --protect is ordinary text: the names of --data's columns do not hold for it
    corpus = sampling.split_corpus(
        readers.open_parts(source, Form(template=form.template, chats=form.chats)),
        tokenizer,
        shares=[1.0],
        num_tokens=None if one_by_one else config.score.calibration_tokens,
        num_held_out=0,
        seed=config.run.seed,
        find_answers=text.counts_answers(config),
    )
    # such a scorer weighs both texts itself, so no neurons are protected by rank
    if one_by_one:
        documents = corpus.subsets[0][: authors_rule.NUM_GENERAL]
        samples = [ids[:length] for ids in documents]
        return Protected(samples=samples, fingerprint=corpus.fingerprint)
    alone, pad = text.counts_answers(config), packing.padding_token(tokenizer)
    answers = corpus.answers[0] if alone else None
    tokens = packing.pack(corpus.subsets[0], length, pad, source, answers)
    tokens = dataclasses.replace(tokens, count_answers=alone, learn_answers=alone)
    if not tokens.num_counted:
        raise ValueError(
            f"--calibrate-on answers: --protect {source} holds no answer; give other text, or use"
            " --calibrate-on all"
        )
    return Protected(tokens=tokens, fingerprint=corpus.fingerprint)

"""What a run reads: the data of all rounds, held-out text, evaluation tasks, --protect's text; and
one fingerprint of it all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import say
from ptl_fast.run import quality_gate

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.config.config import Config
    from ptl_fast.data.documents import Form
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.data.sampling import Corpus, Document
    from ptl_fast.evaluation.tasks import EvalTask
    from ptl_fast.run.rounds import Course

NUM_HELD_OUT, NUM_CHECKED = (
    256,
    64,
)  # documents for evaluation, and for --recovery-split until-recovered


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was read before the first round; the rounds' own parts of the data are in the course."""

    tokenizer: "PreTrainedTokenizerBase"
    lm_eval_tasks: "dict[str, TaskDict]"
    """Evaluation tasks but nll, by label."""
    nll_documents: "dict[str, list[Document]]"
    """Held-out text of the evaluation tasks nll, by label."""
    checked_documents: "list[Document]"
    """Held-out text by which rounds know that they have recovered, for --recovery-split
    until-recovered.
    """
    protected: "Protected | None"
    fingerprint: dict[str, Any]
    """Of all that was read, and of the weights."""


@dataclass(frozen=True, kw_only=True)
class Protected:
    """A sample of --protect's text: packed for scores, or one by one for scorer reference."""

    tokens: "PackedTokens | None" = None
    samples: Sequence[Sequence[int]] = ()
    fingerprint: str


def load(config: "Config", tasks: "list[EvalTask]", course: "Course") -> Inputs:
    """Read everything, and give each round of the course its part of the data.

    Raises:
        ValueError: the data, a file or the tokenizer does not fit; names the fix.
    """
    from ptl_fast.data import packing, readers, sampling
    from ptl_fast.evaluation import nll
    from ptl_fast.evaluation import tasks as tasks_module
    from ptl_fast.model import loading

    assert config.model is not None
    tokenizer = loading.load_tokenizer(config.model)
    if config.teacher is not None:
        loading.check_teacher(config.teacher, tokenizer)
    lm_eval_tasks = {
        task.label: tasks_module.load_lm_eval_task(task) for task in tasks if task.task != nll.NLL
    }
    if config.gate is not None:
        task, metric = quality_gate.parse_gate(config.gate, [task.label for task in tasks])
        quality_gate.check_metric(task, metric, list(tasks_module.metrics(lm_eval_tasks.get(task))))
    generating = "grpo" if config.uses_grpo else "lm-eval" if lm_eval_tasks else None
    if generating is not None and tokenizer.eos_token_id is None:
        raise ValueError(
            f"--model {config.model}: {generating} needs a tokenizer with an end-of-sequence"
            " token; set eos_token"
        )
    if tokenizer.eos_token_id is None:
        say(
            f"--model {config.model}: its tokenizer has no end-of-sequence token, so that"
            " documents are trained without an end."
        )
    form = make_form(config)
    num_evaluated = (
        NUM_HELD_OUT if any(task.task == nll.NLL and task.file is None for task in tasks) else 0
    )
    num_checked = NUM_CHECKED if config.recovery_split == "until-recovered" else 0
    corpus = _load_corpus(config, form, tokenizer, course, num_evaluated + num_checked)
    course.begin(corpus, packing.padding_token(tokenizer))
    cut = (
        len(corpus.held_out) * num_checked // max(1, num_evaluated + num_checked)
    )  # small data has fewer of both
    held_out = corpus.held_out[cut:]
    protected = _load_protected(config, form, tokenizer)
    nll_documents = {
        task.label: readers.load_documents(task.file, form, config.eval_limit)
        if task.file
        else held_out[: config.eval_limit]
        for task in tasks
        if task.task == nll.NLL
    }
    if not all(nll_documents.values()):
        raise ValueError(
            f"{config.data} has too few documents to hold some out for nll; give more, or"
            " --eval-tasks nll=FILE"
        )
    return Inputs(
        tokenizer=tokenizer,
        lm_eval_tasks=lm_eval_tasks,
        nll_documents=nll_documents,
        checked_documents=_affordable(corpus.held_out[:cut], config, tokenizer, course)
        if num_checked
        else [],
        protected=protected,
        fingerprint={
            "data": corpus.fingerprint,
            "protect": protected.fingerprint if protected is not None else None,
            "nll": {
                label: sampling.fingerprint(documents) for label, documents in nll_documents.items()
            },
            "weights": loading.weights_fingerprint(config.model),
            "teacher": loading.weights_fingerprint(config.teacher)
            if config.teacher is not None
            else {},
        },
    )


def make_form(config: "Config") -> "Form":
    """How the settings want a row of data read."""
    from ptl_fast.data import documents as documents_module

    template = documents_module.make_template(config.template)
    return documents_module.Form(
        config.question_column, config.answer_column, config.text_column, template
    )


def _load_corpus(
    config: "Config",
    form: "Form",
    tokenizer: "PreTrainedTokenizerBase",
    course: "Course",
    num_held_out: int,
) -> "Corpus":
    """Split the data among the rounds of the course, by their shares of the tokens."""
    from ptl_fast.data import readers, sampling
    from ptl_fast.recovery.grpo import prompts

    assert config.data is not None
    shares = [step.recovery_share for step in course.schedule]
    total = (
        sum(shares) if config.final_recovery is not None else 1.0
    )  # the final one has its tokens on top
    corpus = sampling.split_corpus(
        readers.open_parts(config.data, form, config.seed if config.streaming else None),
        tokenizer,
        shares=[share / total for share in shares],
        num_tokens=None
        if config.recovery_tokens is None
        else round(total * config.recovery_tokens),
        num_held_out=num_held_out,
        seed=config.seed,
        keep_documents=config.uses_grpo,
    )
    if config.uses_grpo:  # say so before any work is done
        for documents in corpus.documents:
            prompts.check(documents, tokenizer, config, config.data)
    return corpus


def _affordable(
    documents: "list[Document]",
    config: "Config",
    tokenizer: "PreTrainedTokenizerBase",
    course: "Course",
) -> "list[Document]":
    """As many of these documents as the checks of --recovery-split until-recovered may read."""
    from ptl_fast.data import sampling
    from ptl_fast.recovery import token_budget

    if not documents:
        raise ValueError(
            f"{config.data} has too few documents to hold some out for --recovery-split"
            " until-recovered; give more"
        )
    lengths = [len(ids) for ids in sampling.tokenize(documents, tokenizer)]
    num_tokens = config.recovery_tokens or sum(tokens.num_tokens for tokens in course.training)
    return documents[: token_budget.num_affordable(lengths, num_tokens, len(course.schedule))]


def _load_protected(
    config: "Config", form: "Form", tokenizer: "PreTrainedTokenizerBase"
) -> Protected | None:
    """Take a sample of --protect."""
    from ptl_fast.baselines import authors_rule
    from ptl_fast.data import documents as documents_module
    from ptl_fast.data import packing, readers, sampling

    if config.protect is None:
        return None
    by_reference = config.scorer == "reference"
    corpus = sampling.split_corpus(
        readers.open_parts(config.protect, documents_module.Form(template=form.template)),
        tokenizer,
        shares=[1.0],
        num_tokens=None if by_reference else config.calibration_tokens,
        num_held_out=0,
        seed=config.seed,
    )
    if by_reference:  # one sample at a time, and no neuron is protected besides
        samples = [
            ids[: config.sequence_length] for ids in corpus.subsets[0][: authors_rule.NUM_GENERAL]
        ]
        return Protected(samples=samples, fingerprint=corpus.fingerprint)
    tokens = packing.pack(
        corpus.subsets[0], config.sequence_length, packing.padding_token(tokenizer), config.protect
    )
    return Protected(tokens=tokens, fingerprint=corpus.fingerprint)

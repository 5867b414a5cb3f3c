"""Which of the data's questions the model is asked for its own traces, and for how many tokens."""

from typing import TYPE_CHECKING

from ptl_fast.base.console import say
from ptl_fast.data.answers import checkable_answer
from ptl_fast.data.readers import Part
from ptl_fast.recovery import registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptl_fast.config.config import Config
    from ptl_fast.data.documents import Document
    from ptl_fast.data.sampling import Sample

# How much more of the data is read than the traces will need, in its own tokens: answers that are
# kept may be few, or shorter than those of the data.
READ_AHEAD = 4


def num_trace_tokens(config: "Config", num_tokens: int | None) -> int | None:
    """Tokens, prompts included, that the traces which are kept need; None if only --traces-number
    limits them.

    Args:
        num_tokens: what the rounds' recoveries need of the data in total; None for all of it.
    """
    if num_tokens is not None:
        return num_tokens
    methods = registry.find(config.recovery.all_recoveries)
    trains = any(method.on_text or method.on_problems for method in methods)
    # otherwise scoring alone reads the data
    return None if trains else config.score.calibration_tokens


def check(config: "Config") -> None:
    """Raise ValueError if nothing says when there are enough traces."""
    limited = config.traces.traces_number or num_trace_tokens(
        config, config.recovery.recovery_tokens
    )
    if config.traces.traces and not limited:
        raise ValueError(
            "--traces would ask every question of --data; say how much recovery needs with"
            " --recovery-tokens, or how many to ask with --traces-number"
        )


def num_read(config: "Config", num_tokens: int | None) -> int | None:
    """How many of the data's tokens to sample; None for all.

    Args:
        num_tokens: as for ``num_trace_tokens``.
    """
    if not config.traces.traces:
        return num_tokens
    needed = num_trace_tokens(config, num_tokens)
    return None if needed is None else READ_AHEAD * needed


def to_ask(config: "Config", sample: "Sample") -> list[Part]:
    """The documents to be answered, a part for each part of the data, in the order of the sample.

    Each question is asked once, and none that is held out. Plain text is among them; it is not
    asked. Without --traces the list is empty.

    Raises:
        ValueError: there is no question, or none whose answer can be checked where that decides
            what is kept.
    """
    settings = config.traces
    if not settings.traces:
        return []
    seen = {document.question for held_out in sample.held_out for document in held_out}
    parts = []
    for name, weight, training in zip(sample.names, sample.weights, sample.training, strict=True):
        documents = _distinct([item.document for item in training], seen)
        if settings.traces_number is not None:
            documents = documents[: max(1, round(weight * settings.traces_number))]
        parts.append(Part(f"own traces of {name}", weight, documents))
    _check_questions(config, [document for part in parts for document in part.documents])
    return parts


def _distinct(documents: "Sequence[Document]", seen: set[str]) -> "list[Document]":
    """The documents whose questions were not seen, and those without a question; adds to ``seen``.

    The same question with another answer would be asked twice, or although it is held out.
    """
    found = []
    for document in documents:
        if document.question and document.question in seen:
            continue
        found.append(document)
        seen.add(document.question)
    return found


def _check_questions(config: "Config", documents: "Sequence[Document]") -> None:
    asked = [document for document in documents if document.question]
    if not asked:
        raise ValueError(
            f"--traces: {config.data.data} has no questions that the model could answer, only text;"
            " give {question, answer} data, or leave --traces out"
        )
    runs_code = config.evaluation.allow_code_execution
    if any(document.tests for document in asked) and not runs_code:
        if config.traces.needs_judging:
            raise ValueError(
                "--traces: what is kept depends on which answers are right, and for that the code"
                " in them must be run; allow it with --allow-code-execution, or leave"
                " --traces-keep and --traces-every-round out"
            )
        say("Own traces with code are not judged; --allow-code-execution would run their tests.")
    checkable = any(document.tests or checkable_answer(document.answer) for document in asked)
    if config.traces.needs_judging and not checkable:
        raise ValueError(
            f"--traces: no answer in {config.data.data} marks its final answer, as \\boxed{{}} or"
            " ####, so none can be checked; leave --traces-keep and --traces-every-round out"
        )

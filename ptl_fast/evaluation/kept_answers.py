"""Answers that an evaluation has got from the model, kept to be read beside another model's.

They exist anyway, as the evaluation judges them; nothing is generated for this.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

# Problems of a task, from its first, whose answers are kept, and characters of a text. 500 answers
# of the longest are 1.2 MB with their questions, for each evaluation of a run.
MOST, LONGEST = 500, 800


class KeptAnswer(TypedDict):
    """A problem, and what the model answered."""

    question: str
    expected: str
    """What the data has as its answer, or the tests that an answer must pass."""
    answer: str
    right: bool


class Measured(NamedTuple):
    """What a task found out about a model."""

    metrics: dict[str, float]
    answers: list[KeptAnswer]
    """To its first problems; empty if the task asks for no answers, or judges none right or wrong.
    """


def shortened(text: str, longest: int = LONGEST) -> str:
    """The text as anything can show it, in about so many characters: its middle goes.

    The beginning shows how an answer goes about it, the end has its result. Control characters are
    replaced: a terminal would obey them, and a page may not have them.
    """
    shown = "".join(each if _is_shown(each) else "\N{REPLACEMENT CHARACTER}" for each in text)
    if len(shown) <= longest:
        return shown
    head, tail = longest * 2 // 3, longest // 3
    cut = len(shown) - head - tail
    return f"{shown[:head]}\n[... {cut:,} characters ...]\n{shown[-tail:]}"


def _is_shown(character: str) -> bool:
    """Whether it is a line's end, a tab, or a character that stands for text."""
    # Cc: control, Cs: half of a pair, which UTF-8 does not have, Cn: no character at all
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Cn")


def keep(question: str, expected: str, answer: str, *, right: bool) -> KeptAnswer:
    """One answer, its texts shortened."""
    return {
        "question": shortened(question),
        "expected": shortened(expected),
        "answer": shortened(answer),
        "right": right,
    }


def of_samples(
    samples: Sequence[dict[str, Any]], metric: str, question_of: Callable[[Any], Any]
) -> list[KeptAnswer]:
    """Answers among lm-eval's logged samples, in the problems' order.

    Args:
        samples: lm-eval's, of one task: every problem once for each of its answer filters.
        metric: METRIC,FILTER as lm-eval names results.
        question_of: makes of a problem its question, without examples before it.
    """
    name, _, answer_filter = metric.partition(",")
    found = sorted(
        (each for each in samples if each["filter"] == answer_filter),
        key=lambda sample: sample["doc_id"],
    )[:MOST]
    # a task such as BLEU's judges no answer right or wrong
    if not all(each.get(name) in (0, 1) for each in found):
        return []
    return [
        keep(
            str(question_of(each["doc"])),
            str(each["target"]),
            str(each["resps"][0][0]),
            right=bool(each[name]),
        )
        for each in found
    ]

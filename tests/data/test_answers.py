"""The final answer is found in a response, and equal answers are equal however they are written."""

import re
import threading
import time

import hypothesis
import pytest
from hypothesis import strategies

from ptl_fast.data import answers
from ptl_fast.data.answers import checkable_answer
from support.eval_tasks import MATH_PROBLEMS, read


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 8.", "8"),
        ("The answer is 3.5. I am sure.", "3.5"),
        ("the answer is: $1,200", "1,200"),
        ("#### 5", "5"),
        ("The answer is 4.\nNo: the answer is 5.", "5"),
        ("$\\boxed{\\frac{1}{2}}$, so the answer is one half.", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("$\\boxed 7$.", "7"),
        ("\\fbox{3}", "3"),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("Final Answer: The final answer is $\\sqrt{2}$. I hope it is correct.", "\\sqrt{2}"),
        ("Eight.", None),
        ("", None),
    ],
)
def test_final_answers(response: str, answer: str | None) -> None:
    assert answers.final_answer(response) == answer


@pytest.mark.parametrize(
    "say",
    [
        "Final Answer: The final answer is ${}$. I hope it is correct.",
        "Therefore $\\boxed{{{}}}$.",
        "#### {}",
    ],
)
def test_equal_answers_are_right_however_written_and_others_wrong(say: str) -> None:
    for row in read(MATH_PROBLEMS):
        gold = answers.final_answer(row["solution"])
        assert gold is not None
        assert answers.is_right(gold, say.format(row["same"])), (gold, row["same"])
        assert not answers.is_right(gold, say.format(row["wrong"])), (gold, row["wrong"])


def test_an_answer_that_no_one_can_compute_is_wrong_and_the_next_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "CPU_SECONDS", 2)
    judge = answers._Judge()
    tower = "9" + "^{9" * 4 + "}" * 4
    assert not judge.ask(["5", tower, ""])
    assert judge.ask(["5", "5", ""])


def test_answers_are_judged_from_any_thread() -> None:
    judged: list[bool] = []
    thread = threading.Thread(
        target=lambda: judged.append(answers.is_right("\\frac12", "\\boxed{0.5}"))
    )
    thread.start()
    thread.join()
    assert judged == [True]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("2+3=5;#### 5", "5"),
        ("So it is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("8.5", "8.5"),
        ("x = 3", "x = 3"),
        ("It depends.", None),  # nothing that math-verify could compare
        ("First 2, then 3.\nThen 4.", None),
        ("In 1998 the company had 12 employees in two towns.", None),
        ("\\boxed{}", None),
    ],
)
def test_what_a_data_sets_answer_is_judged_by(answer: str, gold: str | None) -> None:
    assert checkable_answer(answer) == gold


BOX = "\\boxed{"


def slow_group(text: str) -> str | None:
    """The content of the braces that the text begins with, by counting to the end."""
    depth = 0
    for position, letter in enumerate(text):
        escaped = position > 0 and text[position - 1] == "\\"
        depth += 0 if escaped else (letter == "{") - (letter == "}")
        if depth == 0:
            return text[1:position].strip()
    return None


@hypothesis.given(
    strategies.lists(strategies.sampled_from(["{", "}", "\\{", "\\}", BOX, "x", " "]))
)
def test_braces_in_one_pass_are_those_that_counting_finds(parts: list[str]) -> None:
    text = "".join(parts)
    found = [slow_group(text[each.end() - 1 :]) for each in re.finditer(re.escape(BOX), text)]
    expected = [each for each in found if each is not None]
    assert answers.final_answer(text) == (expected[-1] if expected else None)


SPACED = "The answer is x" + " " * 200000 + "y"


def test_a_long_response_takes_no_longer_a_letter_than_a_short_one() -> None:
    start = time.process_time()
    for text in ("\\boxed{" * 30000, "answer is" + " " * 200000, "####" * 50000, SPACED):
        answers.final_answer(text)
    assert time.process_time() - start < 5

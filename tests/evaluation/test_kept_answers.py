"""Answers of an evaluation are kept as judged, and in a form that anything can show."""

from typing import Any

import pytest

from ptl_fast.evaluation import kept_answers


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        (
            "\x1b[31mred\x00\x07",
            "\N{REPLACEMENT CHARACTER}[31mred" + "\N{REPLACEMENT CHARACTER}" * 2,
        ),
        ("half \ud83d", "half \N{REPLACEMENT CHARACTER}"),
        ("π ≠ 3, 日本", "π ≠ 3, 日本"),
        ("", ""),
    ],
)
def test_nothing_is_left_that_a_terminal_obeys_or_a_page_refuses(text: str, shown: str) -> None:
    assert kept_answers.shortened(text) == shown


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = "begin " + "x" * 5000 + " = 17"
    cut = kept_answers.shortened(text, 90)
    assert cut.startswith("begin xxx")
    assert cut.endswith("xxx = 17")
    assert "\n[... 4,921 characters ...]\n" in cut
    assert len(cut) < 90 + 40


def sample(doc_id: int, name: str, exact_match: Any) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "doc": {"q": f"problem {doc_id}"},
        "target": 4,
        "resps": [[f"answer {doc_id}", "another"]],
        "filter": name,
        "exact_match": exact_match,
    }


def test_one_filter_of_lm_eval_in_the_problems_order() -> None:
    samples = [
        sample(1, "strict", 0.0),
        sample(0, "strict", 1.0),
        sample(0, "loose", 0.0),
        sample(1, "loose", 0.0),
    ]
    found = kept_answers.of_samples(samples, "exact_match,strict", lambda doc: doc["q"])
    assert found == [
        {"question": "problem 0", "expected": "4", "answer": "answer 0", "right": True},
        {"question": "problem 1", "expected": "4", "answer": "answer 1", "right": False},
    ]


@pytest.mark.parametrize("value", [0.37, (1, 2), None])
def test_a_metric_that_judges_nothing_right_keeps_no_answers(value: Any) -> None:
    samples = [sample(0, "none", 1.0), sample(1, "none", value)]
    assert kept_answers.of_samples(samples, "exact_match,none", lambda doc: doc["q"]) == []


def test_only_the_first_problems_are_kept() -> None:
    samples = [sample(number, "none", 1.0) for number in range(kept_answers.MOST + 7)]
    found = kept_answers.of_samples(samples, "exact_match,none", lambda doc: doc["q"])
    assert len(found) == kept_answers.MOST

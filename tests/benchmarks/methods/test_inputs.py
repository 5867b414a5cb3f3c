"""What the cells read: problems with and without a skill, and English text."""

import json

from benchmarks.methods import inputs


def test_problems_without_a_skill_are_disjoint_and_in_their_parts() -> None:
    from ptl_fast.demo.problems import part_of

    texts = {name: make() for name, make in inputs.unseen_problems("validation").items()}
    problems = {
        name: [json.loads(line)["question"] for line in text.splitlines()]
        for name, text in texts.items()
    }
    for name, multiplies, part in (
        ("recovery", False, "training"),
        ("unseen-training", True, "training"),
        ("seen", False, "validation"),
        ("unseen", True, "validation"),
    ):
        assert all(
            ("multiply" in question) == multiplies and part_of(question) == part
            for question in problems[name]
        ), name
    assert len(problems["seen"]) == len(problems["unseen"]) == inputs.NUM_PROBLEMS


def test_english_text_is_a_thousand_paragraphs_of_english() -> None:
    """The authors' rule looks at a thousand samples."""
    text = inputs.english_text()
    assert len(text.split("\n\n")) >= 1000
    assert text == inputs.english_text()
    assert text.count(" the ") > 1000

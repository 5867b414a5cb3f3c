"""Tasks come as a list or as text with commas, and there is at least one."""

from typing import Any

import pytest

from ptl_fast.config.evaluation import EvaluationSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_tasks": []}, "--eval-tasks names no task"),
        ({"eval_limit": 0}, "--eval-limit 0 must be at least 1"),
        ({"eval_batch": 0}, "--eval-batch 0 must be at least 1"),
        ({"eval_max_tokens": 0}, "--eval-max-tokens 0 must be at least 1"),
        ({"eval_samples": 0}, "--eval-samples 0 must be at least 1"),
        ({"eval_temperature": -0.1}, "--eval-temperature -0.1 must be a number"),
        ({"eval_samples": 2, "eval_temperature": 0.0}, "would be the same answer each time"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**values).check()


def test_defaults_make_sense() -> None:
    EvaluationSettings().check()


def test_tasks_as_text_and_as_a_list_are_the_same() -> None:
    expected = ["nll", "ptl_gsm8k=test.jsonl"]
    assert EvaluationSettings(eval_tasks="nll,ptl_gsm8k=test.jsonl").eval_tasks == expected
    assert EvaluationSettings(eval_tasks=expected).eval_tasks == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 0.0),
        ({"eval_temperature": 0.3}, 0.3),
        ({"eval_samples": 4}, 0.6),
        ({"eval_samples": 4, "eval_temperature": 1.0}, 1.0),
    ],
)
def test_several_answers_are_drawn_at_a_temperature(
    values: dict[str, Any], expected: float
) -> None:
    assert EvaluationSettings(**values).sampling_temperature == expected


def test_none_measures_nothing_and_stands_alone() -> None:
    assert EvaluationSettings(eval_tasks="none").tasks == []
    EvaluationSettings(eval_tasks="none").check()
    for given in ("none,nll", "nll,none", "none,none"):
        with pytest.raises(ValueError, match="none stands alone"):
            EvaluationSettings(eval_tasks=given).check()

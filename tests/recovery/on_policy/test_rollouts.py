"""Answers grow from short to long while the steps pass."""

import pytest

from ptl_fast.config.opd import OpdSettings
from ptl_fast.recovery.on_policy.rollouts import (
    longest_answer,
    mean_longest_answer,
    rollouts_of,
)


def test_answers_grow_over_the_first_half_of_the_steps() -> None:
    opd = OpdSettings(opd_max_tokens=100, opd_start_tokens=20)
    lengths = [longest_answer(opd, step, 9) for step in range(9)]
    assert lengths == [20, 38, 56, 73, 91, 100, 100, 100, 100]
    assert longest_answer(opd, 0, 1) == 20
    many = [longest_answer(opd, step, 10_000) for step in range(10_000)]
    assert mean_longest_answer(opd) == pytest.approx(sum(many) / len(many), abs=0.01) == 80


def test_answers_begin_at_a_quarter_unless_told() -> None:
    assert longest_answer(OpdSettings(opd_max_tokens=64), 0, 10) == 16
    assert longest_answer(OpdSettings(opd_max_tokens=3), 0, 10) == 1
    same = OpdSettings(opd_max_tokens=64, opd_start_tokens=64)
    assert {longest_answer(same, step, 10) for step in range(10)} == {64}


def test_one_answer_to_each_question() -> None:
    own = rollouts_of(OpdSettings(opd_prompts=6, opd_max_tokens=100, opd_prompt_tokens=11))
    assert (own.per_step, own.longest, own.gold) == (6, 111, None)

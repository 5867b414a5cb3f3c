"""Rewards judge the marked answer."""

import pytest

from ptl_fast.recovery.grpo import rewards


@pytest.mark.parametrize(
    ("gold", "response", "accuracy", "marked"),
    [
        pytest.param("65", " 47+8=55;55*3=65;#### 65", 1, 1, id="right"),
        pytest.param("65", " 47+8=55;55*3=66;#### 66", 0, 1, id="wrong"),
        pytest.param("65", " 47+8=55;55*3=65;", 0, 0, id="right-but-unmarked"),
        pytest.param("7", "so \\boxed{07}", 1, 1, id="another-spelling-of-a-number"),
        pytest.param("\\frac{1}{2}", "Thus \\boxed{0.5}.", 1, 1, id="equal-by-math-verify"),
        pytest.param(
            "\\frac{1}{2}", "Thus \\boxed{\\frac{2}{3}}.", 0, 1, id="unequal-by-math-verify"
        ),
        pytest.param("18", "#### 18 dollars", 1, 1, id="with-its-unit"),
        pytest.param("65", "", 0, 0, id="empty"),
    ],
)
def test_rewards_judge_the_marked_answer(
    gold: str, response: str, accuracy: float, marked: float
) -> None:
    assert rewards.REWARDS["accuracy"](gold, response) == accuracy
    assert rewards.REWARDS["format"](gold, response) == marked


def test_plain_numbers_need_no_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ptl_fast.data.answers.is_right", lambda *arguments: pytest.fail("asked math-verify")
    )
    assert rewards.accuracy("65", "#### 65") == 1
    assert rewards.accuracy("65", "#### 56") == 0


def test_gold_is_what_the_datas_answer_marks() -> None:
    answers = ["2+3=5;#### 5", "It is \\boxed{x^2}.", " 7 "]
    assert [rewards.gold_answer(answer) for answer in answers] == ["5", "x^2", "7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1", "unknown reward 'speed'"),
        ("accuracy", "is not NAME=WEIGHT"),
        ("accuracy=0", "one of them above 0"),
        ("accuracy=-1,format=2", "at least 0"),
        ("format=nan", "must be finite"),
    ],
)
def test_weights_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.parse_weights(text)

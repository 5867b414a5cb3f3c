"""The share of a run that is done, and the time left, from the seconds of its stages."""

import pytest

from ptl_fast.run.narration import PRIOR, _without_idle_recovery, share_of

ROUND = {"calibrate": 20.0, "compact": 10.0, "recover": 60.0, "evaluate": 10.0}


def test_a_later_round_takes_as_long_as_the_one_before() -> None:
    share, left = share_of([ROUND], {"calibrate": 20.0, "compact": 10.0}, "recover", 1)(30.0, None)
    # 30 of recovery and 10 of evaluation, then a round of 100
    assert left == pytest.approx(30 + 10 + 100)
    assert share == pytest.approx(160 / 300)


def test_the_evaluation_before_recovery_leaves_recovery_to_do() -> None:
    _, left = share_of([ROUND], {"calibrate": 20.0, "compact": 10.0}, "evaluate", 0)(5.0, None)
    assert left == pytest.approx(60.0)


def test_the_first_round_guesses_from_its_own_loop() -> None:
    share, left = share_of([], {}, "calibrate", 0)(10.0, 10.0)
    scale = 20.0 / PRIOR["calibrate"]
    assert left == pytest.approx(scale * sum(PRIOR.values()) - 10.0)
    assert share == pytest.approx(10.0 / (scale * sum(PRIOR.values())))


def test_a_stage_takes_no_less_than_its_loop_needs() -> None:
    _, left = share_of([dict(ROUND, recover=1.0)], {}, "recover", 0)(5.0, 70.0)
    assert left == pytest.approx(70.0 + 10.0)


def test_nothing_is_promised_before_anything_is_known() -> None:
    share, left = share_of([], {}, "calibrate", 3)(2.0, None)
    assert left is None
    assert share == 0.0


def test_a_stage_that_takes_longer_never_leaves_less_than_nothing() -> None:
    share, left = share_of([ROUND], dict(ROUND, evaluate=5.0), "evaluate", 0)(1000.0, None)
    assert left == 0.0
    assert share == 1.0


def test_a_recovery_that_was_not_needed_says_nothing_of_the_next_one() -> None:
    known = _without_idle_recovery(dict(ROUND, recover=0.1))
    assert "recover" not in known
    assert _without_idle_recovery(ROUND) == ROUND
    _, left = share_of([known], {}, "recover", 0)(0.0, None)
    scale = 40.0 / (sum(PRIOR.values()) - PRIOR["recover"])
    assert left == pytest.approx(PRIOR["recover"] * scale + 10.0)


def test_a_round_without_recovery_expects_none() -> None:
    _, left = share_of([], {}, "calibrate", 0, {**PRIOR, "recover": 0.0})(10.0, 10.0)
    scale = 20.0 / PRIOR["calibrate"]
    assert left == pytest.approx(scale * (sum(PRIOR.values()) - PRIOR["recover"]) - 10.0)

"""Contenders take turns, and ratios have a spread."""

import pytest

from benchmarks.harness.turns import forth_and_back, median_and_spread, rotated


def test_every_contender_starts_as_often_as_the_others() -> None:
    orders = [rotated("abc", turn) for turn in range(4)]
    assert orders == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert [forth_and_back("ab", turn) for turn in range(3)] == [list("ab"), list("ba"), list("ab")]


def test_spread_is_from_the_20th_to_the_80th_percentile() -> None:
    assert median_and_spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == pytest.approx((3.5, 2.0, 5.0))

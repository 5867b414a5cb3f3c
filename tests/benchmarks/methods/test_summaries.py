"""Means and spreads over the seeds."""

import pytest

from benchmarks.methods.summaries import Spread, verdict


def test_spread_is_mean_and_range() -> None:
    spread = Spread((90.0, 96.0, 93.0))
    assert (spread.mean, spread.lowest, spread.highest, spread.range) == (93.0, 90.0, 96.0, 6.0)
    assert str(spread) == "93.0 (90.0 to 96.0)"


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((90.0, 92.0), (86.0, 89.0), "+3.5: yes"),  # 91 - 87.5 = 3.5 > 3
        ((90.0, 92.0), (86.0, 90.0), "+3.0: no"),  # 91 - 88 = 3 < 4
        ((90.0, 92.0), (87.0, 89.0), "+3.0: yes"),  # 3 > 2
        ((90.0, 93.0), (87.0, 90.0), "+3.0: no"),  # equal to the range is not more
        ((80.0, 81.0), (90.0, 91.0), "-10.0: no, behind by more than the spread"),
        ((80.0,), (70.0, 71.0), "+9.5: one seed has no spread"),
    ],
)
def test_verdict_compares_means_with_the_larger_range(
    ours: tuple, theirs: tuple, expected: str
) -> None:
    assert verdict(Spread(ours), Spread(theirs)) == expected


def test_verdict_of_a_loss_is_the_other_way_round() -> None:
    assert verdict(Spread((1.0, 1.5)), Spread((3.0, 3.5)), lower_is_better=True) == "+2.0: yes"

"""Paired comparisons agree with their definitions."""

import itertools
import math

import pytest

from benchmarks.methods import paired


def test_standard_error_is_that_of_the_differences() -> None:
    ours, theirs = [1, 1, 0, 1, 0, 1], [1, 0, 0, 0, 1, 1]
    found = paired.compare(ours, theirs)
    # differences 0, 1, 0, 1, -1, 0: mean 1/6, variance (3 - 6 / 36) / 5
    assert found.difference == pytest.approx(100 / 6)
    assert found.standard_error == pytest.approx(100 * math.sqrt((3 - 1 / 6) / 5 / 6))
    assert (found.num_gained, found.num_lost) == (2, 1)


def test_equal_models_differ_by_nothing() -> None:
    assert paired.compare([1, 0, 1], [1, 0, 1]) == (0, 0, 0, 0, 1.0)


def test_several_seeds_count_as_their_mean() -> None:
    found = paired.compare([0.5, 1.0], [0.5, 0.5])
    assert (found.difference, found.num_gained, found.num_lost) == (25, 1, 0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 0), (1, 5), (4, 4), (2, 3)])
def test_sign_test_counts_the_splits_that_are_as_uneven(gained: int, lost: int) -> None:
    total, uneven = gained + lost, abs(gained - lost)
    splits = [sum(signs) for signs in itertools.product((1, -1), repeat=total)]
    expected = sum(abs(split) >= uneven for split in splits) / len(splits)
    assert paired.sign_test(gained, lost) == pytest.approx(expected)


def test_other_problems_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired.compare([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="at least two problems"):
        paired.compare([1], [1])

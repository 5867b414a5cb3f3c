"""Contenders that take turns, and the ratios of the times that they took in the same turn.

A machine's speed drifts. Contenders that run one after the other in every turn meet the same drift,
so the ratio within a turn is steadier than the ratio of two medians.
"""

import statistics
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rotated(contenders: Sequence[T], turn: int) -> list[T]:
    """The order of a turn: each starts with the next contender, so that none is always first."""
    first = turn % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def forth_and_back(contenders: Sequence[T], turn: int) -> list[T]:
    """The order of a turn: as given in even turns, reversed in odd ones."""
    return list(contenders) if turn % 2 == 0 else list(contenders)[::-1]


def median_and_spread(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile; takes at least two ratios."""
    quintiles = statistics.quantiles(ratios, n=5, method="inclusive")
    return statistics.median(ratios), quintiles[0], quintiles[-1]

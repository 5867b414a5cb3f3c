"""Compare two models problem by problem."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Comparison(NamedTuple):
    """How much more of the same problems one model solves than another."""

    difference: float
    """In problems out of 100."""
    standard_error: float
    """Of the mean of the differences, in the same unit."""
    num_gained: int
    """Problems that only the first model solves."""
    num_lost: int
    """Problems that only the second model solves."""
    sign_test: float
    """Exact two-sided p of McNemar's test: were gains and losses equally likely, how likely is a
    split at least as uneven."""


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare what two models solve: 1 or 0 for each problem, or the mean of several seeds.

    The standard error is that of the paired differences: problems that both solve, or neither, add
    nothing to it, as they would where the two accuracies were compared as if independent.

    Raises:
        ValueError: they have not the same problems, or fewer than two.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        raise ValueError("a paired comparison needs at least two problems")
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    gained, lost = (sum(sign * each > 0 for each in differences) for sign in (1, -1))
    return Comparison(
        100 * statistics.mean(differences), 100 * error, gained, lost, sign_test(gained, lost)
    )


def sign_test(num_gained: int, num_lost: int) -> float:
    """Exact two-sided p of a split of gains and losses under Binomial(gained + lost, 1/2)."""
    total, smaller = num_gained + num_lost, min(num_gained, num_lost)
    tail = sum(math.comb(total, count) for count in range(smaller + 1)) / 2**total
    return min(1.0, 2 * tail)

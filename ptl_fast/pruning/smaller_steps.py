"""The rounds that take the place of a round whose step was too large."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ptl_fast.pruning.schedule import Round


def split(
    schedule: Sequence[Round],
    number: int,
    next_step: int,
    size: Literal["width", "num_layers"],
    *,
    original: int,
    multiple: int,
) -> list[list[Round]]:
    """What a smaller step from round ``number`` on makes of the schedule: for each round, the
    rounds that take its place.

    From that round on, each round of its kind becomes as many as it takes to remove at most
    ``next_step`` at once. They stand where the round stood, and share its tokens (and data) in
    proportion to what they remove. Other rounds only change their number.

    Args:
        size: what rounds of this kind make smaller.
        original: that size of the original model.
        multiple: what these sizes are multiples of.
    """
    kind, before = schedule[number - 1].kind, original
    groups: list[list[Round]] = []
    first = 1
    for step in schedule:
        target = getattr(step, size)
        sizes = [target]
        if step.number >= number and step.kind == kind:
            sizes = _sizes(before, target, next_step, multiple)
        removed = [larger - smaller for larger, smaller in itertools.pairwise([before, *sizes])]
        shares = [step.recovery_share]
        if len(sizes) > 1:
            shares = [step.recovery_share * part / sum(removed) for part in removed]
        groups.append(
            [
                replace(step, number=first + index, recovery_share=share, **{size: smaller})
                for index, (smaller, share) in enumerate(zip(sizes, shares, strict=True))
            ]
        )
        first += len(sizes)
        before = sizes[-1]
    return groups


def _sizes(before: int, target: int, step: int, multiple: int) -> list[int]:
    """Sizes on the way down to ``target``, multiples of ``multiple``, at most ``step`` apart."""
    sizes = []
    while before > target:
        before = max(target, math.ceil((before - step) / multiple) * multiple)
        sizes.append(before)
    return sizes

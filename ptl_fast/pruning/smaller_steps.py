"""Split rounds into smaller ones, after the quality gate found a round's step too large."""

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
    size: Literal["width", "num_layers", "num_experts"],
    *,
    original: int,
    multiple: int,
) -> list[list[Round]]:
    """Split rounds so that from round ``number`` on none removes more than ``next_step`` at once.

    Each round of the same kind as ``number``, from that one on, is split into as many rounds as
    that takes, which end at the same size. They share its tokens, and so its data, in proportion to
    what they remove. Other rounds are only renumbered.

    Args:
        schedule: all rounds of the run; it is not changed.
        number: the round that failed the quality gate, from 1.
        next_step: the most neurons or experts per layer, or layers, that a round may remove.
        size: the field that rounds of this kind make smaller.
        original: the original model's value of it.
        multiple: the values must be multiples of this.

    Returns:
        For each round of the schedule, the list of rounds that take its place.
    """
    kind, before = schedule[number - 1].kind, original
    groups: list[list[Round]] = []
    # number of the first new round that takes the current one's place
    first = 1
    for step in schedule:
        target = getattr(step, size)
        sizes = [target]
        if step.number >= number and step.kind == kind:
            sizes = _sizes(before, target, next_step, multiple)
        # what each of the new rounds removes
        removed = [larger - smaller for larger, smaller in itertools.pairwise([before, *sizes])]
        # an unsplit round may remove nothing, which would divide by zero
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
    """Sizes on the way from ``before`` down to ``target``, at most ``step`` apart.

    They are multiples of ``multiple``; the last one is the target.
    """
    sizes = []
    while before > target:
        # rounded up, as rounding down would remove more than ``step``
        before = max(target, math.ceil((before - step) / multiple) * multiple)
        sizes.append(before)
    return sizes

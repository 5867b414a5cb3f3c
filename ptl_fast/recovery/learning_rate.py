"""A round's learning rate: warm-up, then a cosine, or constant until the round has recovered."""

import math
from collections.abc import Callable

from ptl_fast.recovery.task import TrainingOptions
from ptl_fast.recovery.token_budget import ClosingPhase

WARMUP_SHARE = 0.05


def learning_rate(options: TrainingOptions, closing: ClosingPhase) -> Callable[[int], float]:
    """Return the function from a step of the round to its part of the peak learning rate.

    A cosine over the round, or at the round's place in a cosine over the whole run. A round of its
    own schedule that may end early
    cannot know how far its cosine should be: it stays at the peak and decays linearly in the
    closing.
    """
    before, after = options.schedule_position or (0, 0)
    total = before + closing.num_steps + after
    if options.schedule_position is None and closing.held_out is not None:
        return lambda step: min(
            _warmup(step, total), 1.0, (closing.ends - step) / (closing.ends - closing.begins)
        )
    return lambda step: _cosine(before + step, total)


def _warmup(step: int, num_steps: int) -> float:
    """Above 1 once it is over, or where there is none."""
    warmup = int(WARMUP_SHARE * num_steps)
    return step / warmup if warmup else math.inf


def _cosine(step: int, num_steps: int) -> float:
    warmup = int(WARMUP_SHARE * num_steps)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))

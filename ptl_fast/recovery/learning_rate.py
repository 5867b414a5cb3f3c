"""Learning-rate schedules of a round: warm-up, then cosine, or constant until early stopping."""

import math
from collections.abc import Callable

from ptl_fast.recovery.task import TrainingOptions
from ptl_fast.recovery.token_budget import ClosingPhase

WARMUP_SHARE = 0.05  # of the schedule's steps


def learning_rate(options: TrainingOptions, closing: ClosingPhase) -> Callable[[int], float]:
    """Return the function from a step of the round to the fraction of the peak learning rate.

    Every schedule begins with a linear warm-up over WARMUP_SHARE of its steps. Then follows:

    - by default, a cosine to zero over the round;
    - with ``options.schedule_position``, this round's section of one cosine over all rounds;
    - with early stopping (``closing.held_out``) and no ``schedule_position``, the peak until the
      closing phase, and a linear decay to zero in it. A cosine needs to know its length, which
      early stopping leaves open.
    """
    before, after = options.schedule_position or (0, 0)
    total = before + closing.num_steps + after
    if options.schedule_position is None and closing.held_out is not None:
        # closing.begins and closing.ends are read at every step: a check may move them
        return lambda step: min(
            _warmup(step, total), 1.0, (closing.ends - step) / (closing.ends - closing.begins)
        )
    return lambda step: _cosine(before + step, total)


def _warmup(step: int, num_steps: int) -> float:
    """The linear warm-up's factor, not capped: above 1 after the warm-up, infinite without one."""
    warmup = int(WARMUP_SHARE * num_steps)
    return step / warmup if warmup else math.inf


def _cosine(step: int, num_steps: int) -> float:
    """Linear warm-up from 0 to 1, then half a cosine from 1 to 0."""
    warmup = int(WARMUP_SHARE * num_steps)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))

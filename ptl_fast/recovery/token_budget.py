"""How a round spends its tokens: how many there are, and when the round ends.

A round's last part is its *closing phase*: from when it has recovered (--recovery-split
until-recovered), or else its last quarter. In it the learning rate of a round that may end early
decays, and --anticipate's penalty acts. Nothing here trains.
"""

import itertools
import math
from collections.abc import Sequence

from ptl_fast.recovery.task import HeldOutText

# A decay over the last fifth or so does what a cosine does (Hägele et al. 2024, arXiv 2405.18392).
CLOSING_SHARE = 0.25
CHECK_COST = 0.1  # of the training's arithmetic
FORWARD_COST = (
    1 / 3
)  # of a training step's arithmetic: the backward pass costs twice the forward pass
# A round that is checked once or twice hardly ends early; few documents say little.
CHECKS_A_ROUND, FEWEST_CHECKED = 8, 8


class ClosingPhase:
    """When the closing begins and ends, in optimizer steps of the round.

    Args:
        num_steps: the round's steps if it does not end early.
        tokens_per_step: tokens that a step trains on.
        held_out: None for a round that spends all it has.
    """

    def __init__(
        self, num_steps: int, tokens_per_step: float, held_out: HeldOutText | None = None
    ) -> None:
        self.num_steps, self.held_out = num_steps, held_out
        self.begins, self.ends = num_steps - max(1, round(CLOSING_SHARE * num_steps)), num_steps
        self.checks: list[tuple[int, float]] = []
        if held_out is not None:
            self.interval = max(
                1, math.ceil(held_out.num_tokens * FORWARD_COST / (CHECK_COST * tokens_per_step))
            )

    def needs_check(self, step: int) -> bool:
        """Whether to measure held-out NLL after ``step`` steps."""
        return self.held_out is not None and step < self.begins and step % self.interval == 0

    def note(self, step: int, nll: float) -> None:
        """Take a measurement; if it is good enough, the closing begins now, and is as long a part
        of the shorter round.
        """
        assert self.held_out is not None
        self.checks.append((step, nll))
        if nll <= self.held_out.recovered:
            self.begins = step
            self.ends = min(
                self.num_steps, step + max(1, round(step * CLOSING_SHARE / (1 - CLOSING_SHARE)))
            )

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"begins": self.begins, "ends": self.ends, "checks": self.checks}

    def restore(self, state: dict) -> None:
        self.begins, self.ends = state["begins"], state["ends"]
        self.checks = [(step, nll) for step, nll in state["checks"]]


def num_affordable(lengths: Sequence[int], num_tokens: int, num_rounds: int) -> int:
    """How many held-out documents, of ``lengths`` tokens, a check may read if an average round is
    to have CHECKS_A_ROUND checks.

    ``num_tokens`` is the whole budget. There are at least FEWEST_CHECKED, then with fewer checks.
    """
    affordable = CHECK_COST / FORWARD_COST * num_tokens / (num_rounds * CHECKS_A_ROUND)
    count = sum(total <= affordable for total in itertools.accumulate(lengths))
    return max(count, min(FEWEST_CHECKED, len(lengths)))


def tokens_left(
    num_tokens: int | None,
    shares: Sequence[float],
    sizes: Sequence[int],
    spent: Sequence[int],
    *,
    shared_as_one: bool,
) -> list[int]:
    """Recovery tokens of each round that is still to come: its share of what the finished rounds
    have left of the budget.

    Args:
        num_tokens: of the whole run, or None for the data once.
        shares: every round's part of the budget.
        sizes: tokens of every round's part of the data.
        spent: tokens that the finished rounds took; one that ended early leaves its rest to the
            others, in proportion.
        shared_as_one: whether rounds share the data's tokens also where the data decides how many
            there are; else each then has its own part's.
    """
    if num_tokens is None and not shared_as_one:
        return list(sizes[len(spent) :])
    left, tokens = (num_tokens or sum(sizes)) - sum(spent), []
    for index in range(len(spent), len(shares)):
        tokens.append(round(left * shares[index] / sum(shares[index:])))
        left -= tokens[-1]
    return tokens

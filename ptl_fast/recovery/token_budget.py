"""Token budget of recovery training: the tokens of each round, and early stopping.

The last part of every round is its *closing phase*: the last quarter of the steps or, with early
stopping (--recovery-split until-recovered), what follows the check that finds the held-out NLL
back at its target. In the closing phase --anticipate's penalty acts, and with early stopping the
learning rate decays. This file only counts steps and tokens; nothing here trains.
"""

import itertools
import math
from collections.abc import Sequence

from ptl_fast.recovery.task import HeldOutText

# Fraction of a round's steps. A decay over the last fifth or so reaches the loss of a cosine
# (Hägele et al. 2024, arXiv 2405.18392).
CLOSING_SHARE = 0.25
# Most that all held-out checks may cost, as a fraction of the training FLOPs.
CHECK_COST = 0.1
# A forward pass as a fraction of a training step's FLOPs: the backward pass costs two forwards.
FORWARD_COST = 1 / 3
# With one or two checks a round can hardly stop early; with few documents the NLL is too noisy.
CHECKS_A_ROUND, FEWEST_CHECKED = 8, 8


class ClosingPhase:
    """First and last step of a round's closing phase, and the early-stopping checks before it.

    ``begins`` and ``ends`` count optimizer steps of the round; ``checks`` holds (step, held-out
    NLL). Both ends move forward when a check finds that the round has recovered.

    Args:
        num_steps: optimizer steps of the round without early stopping.
        tokens_per_step: tokens in a global batch.
        held_out: text to measure the NLL on; None turns early stopping off.
    """

    def __init__(
        self, num_steps: int, tokens_per_step: float, held_out: HeldOutText | None = None
    ) -> None:
        self.num_steps, self.held_out = num_steps, held_out
        self.begins, self.ends = num_steps - max(1, round(CLOSING_SHARE * num_steps)), num_steps
        self.checks: list[tuple[int, float]] = []
        if held_out is not None:
            # steps between checks: a check then costs at most CHECK_COST of the steps it follows
            self.interval = max(
                1, math.ceil(held_out.num_tokens * FORWARD_COST / (CHECK_COST * tokens_per_step))
            )

    def needs_check(self, step: int) -> bool:
        """Whether to measure the held-out NLL after ``step`` steps."""
        # none in the closing phase: its end is fixed, and no measurement would change it
        return self.held_out is not None and step < self.begins and step % self.interval == 0

    def note(self, step: int, nll: float) -> None:
        """Record a check; if the NLL is at or below the target, the closing phase begins now.

        The closing phase is CLOSING_SHARE of the shortened round, and never runs past the end of
        the full one.
        """
        assert self.held_out is not None
        self.checks.append((step, nll))
        if nll <= self.held_out.recovered:
            self.begins = step
            self.ends = min(
                self.num_steps, step + max(1, round(step * CLOSING_SHARE / (1 - CLOSING_SHARE)))
            )

    def state(self) -> dict:
        """The state that a checkpoint saves, as JSON values."""
        return {"begins": self.begins, "ends": self.ends, "checks": self.checks}

    def restore(self, state: dict) -> None:
        """Load what ``state`` returned."""
        self.begins, self.ends = state["begins"], state["ends"]
        # JSON turned the tuples into lists
        self.checks = [(step, nll) for step, nll in state["checks"]]


def num_affordable(lengths: Sequence[int], num_tokens: int, num_rounds: int) -> int:
    """Return how many held-out documents a check may read within CHECK_COST.

    A round of average length can then afford CHECKS_A_ROUND checks. Where that leaves fewer than
    FEWEST_CHECKED documents, FEWEST_CHECKED are read and rounds are checked less often.

    Args:
        lengths: tokens of each held-out document, in the order in which they are taken.
        num_tokens: recovery tokens of the whole run.
        num_rounds: rounds that share them.
    """
    # held-out tokens per check: CHECK_COST of a round's FLOPs, at a forward pass per token
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
    """Return the recovery tokens of each remaining round: its share of the unspent budget.

    What a round saves by early stopping goes to the remaining rounds, in proportion to their
    shares.

    Args:
        num_tokens: budget of the whole run; None means one epoch over the data.
        shares: fraction of the budget for every round, finished ones included.
        sizes: tokens of every round's part of the data, finished ones included.
        spent: tokens that each finished round trained on.
        shared_as_one: with ``num_tokens=None``, whether the rounds share the tokens of all the
            data by ``shares``; if False, each round gets the tokens of its own part.
    """
    if num_tokens is None and not shared_as_one:
        return list(sizes[len(spent) :])
    left, tokens = (num_tokens or sum(sizes)) - sum(spent), []
    for index in range(len(spent), len(shares)):
        # round after round from what is left, so that rounding errors do not add up
        tokens.append(round(left * shares[index] / sum(shares[index:])))
        left -= tokens[-1]
    return tokens

"""How the recovery budget is spent: a round's tokens, its learning rate, and when it ends.

A round's last part is its *closing*: from when it has recovered (--recovery-split until-recovered),
or else its last quarter. In it the learning rate of a round that may end early decays, and
--anticipate's penalty acts. Nothing here trains; recover.py asks."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptl_fast.config.config import NOT_ON_TEXT

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.config.config import Config
    from ptl_fast.recovery.optimizer_state import Moments


# A decay over the last fifth or so does what a cosine does (Hägele et al. 2024, arXiv 2405.18392).
CLOSING_SHARE = 0.25
CHECK_COST = 0.1  # of the training's arithmetic
FORWARD_COST = (
    1 / 3
)  # of a training step's arithmetic: the backward pass costs twice the forward pass
CHECKS_A_ROUND, FEWEST_CHECKED = (
    8,
    8,
)  # a round that is checked once or twice hardly ends early; few documents say little


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Text that no round trains on, by which a round knows that it has recovered."""

    nll: Callable[[], float]
    """The model's negative log-likelihood per token now."""
    num_tokens: int
    """Tokens that this reads."""
    recovered: float
    """The round closes when the NLL is at most this."""


@dataclass(frozen=True, kw_only=True)
class Spending:
    """How a round spends its tokens; as it stands: all of them, on a cosine of its own, from a
    fresh optimizer.
    """

    position: tuple[int, int] | None = None
    """Optimizer steps of the rounds before and after, where one learning-rate schedule spans them
    all.
    """
    held_out: HeldOut | None = None
    """Lets the round end early."""
    anticipate: "Callable[[], Callable[[], Tensor] | None] | None" = None
    """Called when the closing begins; what it returns is computed in every forward pass and added
    to the loss.
    """
    moments: "Moments | None" = None
    """The optimizer's state at the start."""
    keep_moments: bool = False
    """Whether to return the optimizer's state at the end."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a round's recovery took."""

    num_steps: int = 0
    num_tokens: int = 0
    checks: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out NLL)."""
    moments: "Moments | None" = None
    details: dict[str, Any] = field(default_factory=dict)
    """What else the round's record keeps, for each recovery that has something to say."""


class Closing:
    """When the closing begins and ends, in optimizer steps of the round.

    Args:
        num_steps: the round's steps if it does not end early.
        tokens_per_step: tokens that a step trains on.
        held_out: None for a round that spends all it has.
    """

    def __init__(
        self, num_steps: int, tokens_per_step: float, held_out: HeldOut | None = None
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
    config: "Config", shares: Sequence[float], sizes: Sequence[int], spent: Sequence[int]
) -> list[int]:
    """Recovery tokens of each round that is still to come: its share of what the finished rounds
    have left of the budget.

    Args:
        shares: every round's part of the budget.
        sizes: tokens of every round's part of the data.
        spent: tokens that the finished rounds took; one that ended early leaves its rest to the
            others, in proportion.
    """
    if not set(config.recoveries) - NOT_ON_TEXT:
        return [0] * (len(shares) - len(spent))
    if config.recovery_tokens is None and config.recovery_split != "until-recovered":
        return list(sizes[len(spent) :])
    left, tokens = (config.recovery_tokens or sum(sizes)) - sum(spent), []
    for index in range(len(spent), len(shares)):
        tokens.append(round(left * shares[index] / sum(shares[index:])))
        left -= tokens[-1]
    return tokens

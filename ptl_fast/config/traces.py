"""Own traces: the model answers the data's questions itself."""

import math
from dataclasses import dataclass, field

from ptl_fast.config.checking import ROUNDING, check_at_least_one, check_finite, nearest
from ptl_fast.config.numbers import as_share

MAX_TOKENS = 1024
RIGHT_SHARES = {"all": 0.0, "right": 1.0}
"""--traces-keep by name, as the smallest share of right answers in what is kept."""


@dataclass(kw_only=True)
class TracesSettings:
    """Own traces: the model answers the data's questions itself."""

    traces: bool = False
    """Score neurons and recover on the original model's own answers to --data's questions instead
    of the answers written there. It is asked in its chat template, or in --template's form where it
    has none. Documents without a question stay as they are; so do those that are held out for nll.
    The answers are stored in the run's folder."""

    traces_number: int | None = None
    """With --traces: the most questions to ask (default: as many as it takes until the answers that
    are kept, with their prompts, have --recovery-tokens, or with --recovery none
    --calibration-tokens)."""

    traces_max_tokens: int | None = None
    """With --traces: where an answer is cut off (default: at 1024 tokens, or at half of the model's
    positions if that is less). Such an answer is not kept, nor is one that repeats itself without
    end, which is cut off at once."""

    traces_temperature: float = 0.0
    """With --traces: the sampling temperature; 0 takes the likeliest token each time."""

    traces_top_p: float = 1.0
    """With --traces-temperature above 0: draw from the likeliest tokens that together have this
    probability."""

    traces_keep: str = "all"
    """With --traces: which of the answers that the model ended are kept: all, right (those that are
    not wrong), or the smallest share of right ones, such as 0.8: a wrong one is kept only while so
    many of those kept so far are right. Right is what equals the data's final answer (math-verify)
    or passes the tests in its column test_list (with --allow-code-execution); what cannot be
    checked is kept."""

    traces_prompt: str = "auto"
    """With --traces: text below each question. auto is a request to reason step by step and to box
    the final answer, for chat models and where the data's answer marks its own final one; empty
    text is none. Tests that code must pass follow in any case."""

    traces_every_round: bool = False
    """With --traces: before each round but the first, the model as it then is answers the round's
    questions again, and its right answers take the place of the original's."""

    traces_batch: int = field(default=32, metadata=ROUNDING)
    """With --traces: questions that are answered at once, on each rank."""

    @property
    def right_share(self) -> float:
        """The smallest share of right answers among those kept, in [0, 1].

        Raises:
            ValueError: --traces-keep is neither a name nor such a number.
        """
        if self.traces_keep in RIGHT_SHARES:
            return RIGHT_SHARES[self.traces_keep]
        share = as_share(self.traces_keep)
        try:
            share = float(self.traces_keep) if share is None else share
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise ValueError(
                f"--traces-keep {self.traces_keep}: choose {', '.join(RIGHT_SHARES)} or give a"
                f" number from 0 to 1, or 0% to 100%{nearest(self.traces_keep, RIGHT_SHARES)}"
            )
        return share

    def max_tokens(self, num_positions: int | None) -> int:
        """Where answers are cut off, for a model with so many positions; None: without a limit."""
        if self.traces_max_tokens is not None:
            return self.traces_max_tokens
        return min(MAX_TOKENS, num_positions // 2) if num_positions else MAX_TOKENS

    @property
    def needs_judging(self) -> bool:
        """Whether what is kept depends on which answers are right."""
        return self.traces and (self.right_share > 0 or self.traces_every_round)

    def check(self) -> None:
        """Raise ValueError for a setting out of range, or one that does nothing."""
        check_at_least_one(self, ["traces_number", "traces_max_tokens", "traces_batch"])
        check_finite(self, ["traces_temperature"])
        if self.traces_temperature < 0 or not 0 < self.traces_top_p <= 1:
            raise ValueError(
                f"--traces-temperature {self.traces_temperature} must be at least 0, and"
                f" --traces-top-p {self.traces_top_p} in (0, 1]"
            )
        assert self.right_share >= 0  # raises for what it cannot parse
        if self.traces_every_round and not self.traces:
            raise ValueError(
                "--traces-every-round renews own answers, so it needs --traces; give both or"
                " neither"
            )

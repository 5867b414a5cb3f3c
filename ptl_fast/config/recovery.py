"""Which training follows each pruning, and how its tokens are shared among the rounds."""

import math
from dataclasses import dataclass
from typing import Literal

from ptl_fast.config.checking import check_at_least_one, check_finite, flag

MAX_GROWTH = 1000


@dataclass(kw_only=True)
class RecoverySettings:
    """Which training follows each pruning, and how its tokens are shared among the rounds."""

    recovery: str = "cpt"
    """How a round recovers: cpt (continual pre-training on the data), distill (the same, learning
    also from the original model's predictions), opd (on-policy distillation: the model answers the
    data's questions, and the original judges every token), grpo (reinforcement learning on the
    data's problems), several one after another (cpt,grpo), or none."""

    final_recovery: str | None = None
    """Recovery once more, after the last round, on a part of the data of its own, as large as the
    last round's; its tokens come on top of --recovery-tokens. grpo is the paper's "+ RL-Zero"."""

    recovery_tokens: int | None = None
    """Training tokens over all rounds (default: the data once), and so how many documents are kept
    in memory. More than there is repeats each round's part. For grpo and opd it says only how many
    documents there are."""

    recovery_split: Literal["growing", "equal", "until-recovered"] = "growing"
    """How the recovery tokens are shared: growing gives each round --recovery-growth times the
    tokens of the round before; until-recovered starts from the same shares, but a round that
    pruning has not hurt (--recovered-within) does not train, and others end soon after they have
    recovered; the tokens and data that this saves go to later rounds. The last round uses all that
    is left."""

    recovery_growth: float = 2.0
    """The factor of --recovery-split growing and until-recovered. With --recovery-tokens, a round's
    share is raised to the tokens of one optimizer step where it would be smaller."""

    recovered_within: float = 0.02
    """With until-recovered: a round has recovered when the negative log-likelihood per answer token
    of held-out documents of --data is at most this many nats above the original model's (negative:
    below it). It is measured every so many steps that this costs at most a tenth of the training's
    arithmetic. The round then goes on for a third of its steps so far, in which its learning rate
    decays."""

    train_on: Literal["all", "answers"] = "all"
    """Which tokens cpt and distill learn: all, or answers (as with --calibrate-on). What precedes
    an answer is read in either case, and --recovery-tokens counts it."""

    lr_schedule: Literal["round", "run"] = "round"
    """Which stretch a learning-rate schedule spans: each round, or the whole run, so that warm-up
    comes once and later rounds go on where the rounds before ended."""

    keep_optimizer_state: bool = False
    """Begin a round's recovery with Adam's moments of the round before: those of removed neurons
    and layers go, the others move as the weights do. Not with --deepspeed."""

    undo_recovery: bool = True
    """Where a round's recovery has left the model clearly worse than pruning alone did, keep the
    pruned model: the next round, or the result, goes on from it. By the first of --eval-tasks; a
    round with a quality gate follows that."""

    anticipate: float = 0.0
    """Weight of a penalty on the neurons that the next round will remove (DReSS, arXiv 2501.17905):
    in the last quarter of a round's recovery, this times the sum of their weights' L2 norms is
    added to the loss. The next round's neurons are chosen, on its data, when the penalty begins,
    and are exactly those that go. 0 is without."""

    @property
    def recoveries(self) -> list[str]:
        """The recoveries of a round, in order."""
        return _names(self.recovery)

    @property
    def final_recoveries(self) -> list[str]:
        """Those after the last round."""
        return [] if self.final_recovery is None else _names(self.final_recovery)

    @property
    def all_recoveries(self) -> list[str]:
        """Every recovery that the run has, those of a round first."""
        return [*self.recoveries, *self.final_recoveries]

    def check(self) -> None:
        """Raise ValueError for a sequence that makes no sense, or a setting out of range."""
        check_at_least_one(self, ["recovery_tokens"])
        check_finite(self, ["recovery_growth"])
        if not 0 < self.recovery_growth <= MAX_GROWTH:
            raise ValueError(
                f"--recovery-growth {self.recovery_growth} is outside (0, {MAX_GROWTH}]"
            )
        if not (math.isfinite(self.recovered_within) and 0 <= self.anticipate < math.inf):
            raise ValueError(
                f"--recovered-within {self.recovered_within} must be finite, and --anticipate"
                f" {self.anticipate} also at least 0"
            )
        for name in ("recovery", "final_recovery"):
            self._check_sequence(name)

    def _check_sequence(self, name: str) -> None:
        names = _names(getattr(self, name) or "")
        if len(set(names)) < len(names):
            raise ValueError(f"{flag(name)} {','.join(names)}: name each recovery once")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]

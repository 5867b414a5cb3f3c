"""The rounds of a run: the schedule, and the quality gate's decisions that change it.

The schedule follows from the settings and the decisions alone, so a resumed run that replays the
decisions on disk has the same one. Nothing here reads or writes files. The rounds' data is in
round_data.py.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from ptl_fast.baselines import ROUND_KINDS, SCORERS, peers, slicing_schedule
from ptl_fast.model.widths import ExpertLimits, expert_limits, ffn_width
from ptl_fast.pruning import schedule
from ptl_fast.pruning.round_kinds import RoundKind
from ptl_fast.pruning.smaller_steps import split
from ptl_fast.run import quality_gate
from ptl_fast.run.quality_gate import Decision, Gate

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.pruning.schedule import Round


def kind_of(step: "Round") -> RoundKind:
    """How this round plans, prunes and is halved: its entry in ROUND_KINDS."""
    return ROUND_KINDS[step.kind]


class Rounds:
    """The schedule, and the decisions that have changed it so far.

    Args:
        schedule: the rounds that the settings ask for; round n is schedule[n - 1].
        width: FFN width of the original model.
        num_layers: number of layers of the original model.
        width_multiple: every round's width is a multiple of this.
        gate_on: (task, metric) of --gate; None without a quality gate.
        experts: how many experts the original has.
    """

    def __init__(
        self,
        schedule: "list[Round]",
        width: int,
        num_layers: int,
        width_multiple: int,
        gate_on: tuple[str, str] | None = None,
        experts: ExpertLimits | None = None,
    ) -> None:
        self.schedule, self.width, self.num_layers = schedule, width, num_layers
        self.width_multiple, self.gate_on = width_multiple, gate_on
        self.num_experts = None if experts is None else experts.number
        # by size of a round: what its steps are multiples of; layers are counted one by one
        groups = 1 if experts is None else experts.groups
        self.multiples = {"width": width_multiple, "num_layers": 1, "num_experts": groups}
        self.decisions: list[Decision] = []

    def after(self, step: "Round") -> "list[Round]":
        """The rounds after this one, without --final-recovery's."""
        return [each for each in self.schedule[step.number :] if not kind_of(each).is_final]

    def is_judged(self, step: "Round") -> bool:
        """Whether the quality gate holds for this round.

        It does not for --final-recovery, which has no pruning to undo.
        """
        return self.gate_on is not None and not kind_of(step).is_final

    def has_passed(self, number: int) -> bool:
        """Whether round ``number`` has passed the quality gate; its record may not exist yet."""
        return quality_gate.has_passed(self.decisions, number)

    def extensions(self, number: int) -> list[Decision]:
        """The decisions to extend recovery in the current attempt at round ``number``, in order."""
        return quality_gate.extensions(self.decisions, number)

    def failed_attempts(self) -> list[Decision]:
        """The decisions that undid a round, in order."""
        return [each for each in self.decisions if each.undoes]

    def decisions_as_json(self) -> list[dict[str, Any]]:
        """All decisions in order: the content of decisions.json."""
        return [dataclasses.asdict(decision) for decision in self.decisions]

    def decide(
        self,
        gate: Gate,
        step: "Round",
        *,
        measured: float | None,
        tokens: int,
        given: int,
        trains: bool,
        max_extra_recovery: float,
        lacks: str | None,
    ) -> Decision:
        """Return the quality gate's decision on a round, without following it.

        The arguments are those of quality_gate.decide, and:

        Args:
            lacks: why the round's data is too small for a smaller step; None if it is not.
        """
        next_step, reason = self.smaller_step(step)
        # a smaller step needs neurons or layers to halve, and data to split
        if next_step is not None and lacks is not None:
            next_step, reason = None, lacks
        return quality_gate.decide(
            gate,
            self.decisions,
            step,
            removed=self.removed(step),
            measured=measured,
            tokens=tokens,
            given=given,
            trains=trains,
            max_extra_recovery=max_extra_recovery,
            next_step=next_step,
            reason=reason,
        )

    def removed(self, step: "Round") -> int:
        """How many neurons or experts a layer, or layers, a round removes; 0: it only trains."""
        size = kind_of(step).size
        if size is None:
            return 0
        # self has the original's sizes, under the same names as a round
        before = self.schedule[step.number - 2] if step.number > 1 else self
        return getattr(before, size) - getattr(step, size)

    def smaller_step(self, step: "Round") -> tuple[int | None, str | None]:
        """(half of what a round removes, None), or (None, why there is no smaller step)."""
        kind = kind_of(step)
        multiple = self.multiples[kind.size] if kind.size is not None else 1
        return kind.halve(self.removed(step), multiple)

    def split(self, number: int, next_step: int) -> "list[list[Round]]":
        """For each round of the schedule, the rounds that take its place if steps get smaller.

        Args:
            number: the first round that is split; rounds of its kind after it are split too.
            next_step: the most that one round may then remove, in the unit of its kind.
        """
        size = kind_of(self.schedule[number - 1]).size
        assert size is not None
        return split(
            self.schedule,
            number,
            next_step,
            size,
            original=getattr(self, size),
            multiple=self.multiples[size],
        )

    def follow(self, decision: Decision) -> "list[list[Round]] | None":
        """Change the rest of the schedule as a decision says, and remember the decision.

        Returns:
            With a back-off, for each round of the old schedule, the rounds that it became; else
            None.
        """
        # a pass or an extension changes no round, and is still part of the history
        self.decisions.append(decision)
        # the failed round goes too: the result is the model before it
        if decision.stops:
            del self.schedule[decision.round - 1 :]
        if decision.next_step is None:
            return None
        groups = self.split(decision.round, decision.next_step)
        self.schedule = [step for group in groups for step in group]
        return groups


def make_schedule(config: "Config", original: "PretrainedConfig") -> "list[Round]":
    """The rounds that the settings ask for, with --final-recovery's at the end if there is one.

    Raises:
        ValueError: the target cannot be reached; names the setting to change.
    """
    rounds = _pruning_schedule(config, original)
    return schedule.with_final(rounds) if config.recovery.final_recovery is not None else rounds


class DataAmounts(NamedTuple):
    """How much data the rounds need."""

    shares: list[float]
    """Each round's fraction of the tokens; they sum to 1."""
    num_tokens: int | None
    """In total; None takes all that there is."""


def data_amounts(config: "Config", schedule: "list[Round]") -> DataAmounts:
    """How much data the rounds of a schedule need, as long as the quality gate changes nothing."""
    shares, num_tokens = [step.recovery_share for step in schedule], config.recovery.recovery_tokens
    # the tokens of --final-recovery come on top, so with it the shares sum to more than 1
    total = sum(shares) if config.recovery.final_recovery is not None else 1.0
    return DataAmounts(
        [share / total for share in shares],
        None if num_tokens is None else round(total * num_tokens),
    )


def _pruning_schedule(config: "Config", original: "PretrainedConfig") -> "list[Round]":
    """The rounds without --final-recovery's; see make_schedule."""
    width, num_layers = ffn_width(original), original.num_hidden_layers
    # SliceGPT has one round of its own, and no neurons or layers are removed besides
    if config.prune.slice_hidden is not None:
        return slicing_schedule(config.prune.slice_hidden, original)
    if config.prune.num_dropped_layers and hasattr(original, "sliced_hidden_size"):
        raise ValueError(
            f"--drop-layers: the layers of {config.model.model} cannot go, each one's output stands"
            " in axes of its own (SliceGPT)"
        )
    # the shares depend on the number of rounds, which the schedule decides
    rounds = schedule.make_schedule(
        config.prune,
        lambda num_rounds: _token_shares(config, num_rounds),
        width,
        num_layers,
        expert_limits(original),
    )
    if SCORERS[config.score.scorer].add_bias_ is not None:
        peers.check_flap(original)
        rounds = schedule.with_bias(rounds, width)
    # protecting neurons by rank can forbid a round's width, which is known before any work is done
    keeps_by_rank = not SCORERS[config.score.scorer].reads_protected
    if config.data.protect is not None and config.prune.threshold is None and keeps_by_rank:
        schedule.check_protection(rounds, width, config.score.protect_share)
    return rounds


def _token_shares(config: "Config", num_rounds: int) -> list[float]:
    """Each round's fraction of the recovery tokens, by --recovery-split and --recovery-growth.

    No share is below the tokens of one optimizer step, or of two sequences. One sequence would not
    be enough: documents are not cut between rounds, so such a part may fall short of a sequence.
    """
    recovery, batch = config.recovery, config.trainer.global_batch
    return schedule.token_shares(
        num_rounds,
        growth=1.0 if recovery.recovery_split == "equal" else recovery.recovery_growth,
        num_tokens=recovery.recovery_tokens,
        smallest_tokens=config.data.sequence_length * max(2, batch),
    )

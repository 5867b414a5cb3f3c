"""The rounds of a run as they stand: the schedule, and the quality gate's decisions that change it.

Both follow from the settings and the decisions alone, so that a continued run has the same. The
rounds' data is in round_data.py.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from ptl_fast.baselines import ROUND_KINDS, SCORERS, slicing_schedule
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
    """What a round does."""
    return ROUND_KINDS[step.kind]


class Rounds:
    """The schedule and the decisions that made it what it is.

    Args:
        width, num_layers: of the original model.
        width_multiple: what widths are multiples of.
        gate_on: task and metric of --gate.
    """

    def __init__(
        self,
        schedule: "list[Round]",
        width: int,
        num_layers: int,
        width_multiple: int,
        gate_on: tuple[str, str] | None = None,
    ) -> None:
        self.schedule, self.width, self.num_layers = schedule, width, num_layers
        self.width_multiple, self.gate_on = width_multiple, gate_on
        self.decisions: list[Decision] = []

    def after(self, step: "Round") -> "list[Round]":
        """The rounds after this one that remove something, or only train."""
        return [each for each in self.schedule[step.number :] if not kind_of(each).is_final]

    def is_judged(self, step: "Round") -> bool:
        """Whether the gate holds for this round: not for --final-recovery, which has no pruning to
        be undone.
        """
        return self.gate_on is not None and not kind_of(step).is_final

    def has_passed(self, number: int) -> bool:
        return quality_gate.has_passed(self.decisions, number)

    def extensions(self, number: int) -> list[Decision]:
        """The decisions that made the recovery of this attempt at a round longer."""
        return quality_gate.extensions(self.decisions, number)

    def failed_attempts(self) -> list[Decision]:
        """The decisions that undid a round."""
        return [each for each in self.decisions if each.undoes]

    def decisions_as_json(self) -> list[dict[str, Any]]:
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
        """What follows from a round's measurement; the arguments are those of quality_gate.decide.

        Args:
            lacks: what half of the step would lack of data, if it lacks something.
        """
        next_step, reason = self.smaller_step(step)
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
        """How many neurons a layer, or layers, a round removes."""
        size = kind_of(step).size
        if size is None:
            return 0
        before = self.schedule[step.number - 2] if step.number > 1 else self
        return getattr(before, size) - getattr(step, size)

    def smaller_step(self, step: "Round") -> tuple[int | None, str | None]:
        """Half of what a round removes, or None and why there is no smaller step."""
        return kind_of(step).halve(self.removed(step), self.width_multiple)

    def split(self, number: int, next_step: int) -> "list[list[Round]]":
        """For each round, the rounds that a smaller step from round ``number`` on makes of it."""
        size = kind_of(self.schedule[number - 1]).size
        assert size is not None
        original, multiple = {
            "width": (self.width, self.width_multiple),
            "num_layers": (self.num_layers, 1),
        }[size]
        return split(self.schedule, number, next_step, size, original=original, multiple=multiple)

    def follow(self, decision: Decision) -> "list[list[Round]] | None":
        """Change the rounds that are to come as a decision says; returns, for each round before,
        the rounds that it became, where it became others.
        """
        self.decisions.append(decision)
        if decision.stops:
            del self.schedule[decision.round - 1 :]
        if decision.next_step is None:
            return None
        groups = self.split(decision.round, decision.next_step)
        self.schedule = [step for group in groups for step in group]
        return groups


def make_schedule(config: "Config", original: "PretrainedConfig") -> "list[Round]":
    """The rounds that the settings ask for.

    Raises:
        ValueError: the target cannot be reached; names the setting to change.
    """
    rounds = _pruning_schedule(config, original)
    return schedule.with_final(rounds) if config.recovery.final_recovery is not None else rounds


def _pruning_schedule(config: "Config", original: "PretrainedConfig") -> "list[Round]":
    width, num_layers = original.intermediate_size, original.num_hidden_layers
    if config.prune.slice_hidden is not None:
        return slicing_schedule(config.prune.slice_hidden, original)
    if config.prune.drop_layers and hasattr(original, "sliced_hidden_size"):
        raise ValueError(
            f"--drop-layers: the layers of {config.model.model} cannot go, each one's output stands"
            " in axes of its own (SliceGPT)"
        )
    rounds = schedule.make_schedule(
        config.prune, lambda num_rounds: _token_shares(config, num_rounds), width, num_layers
    )
    keeps_by_rank = not SCORERS[config.score.scorer].reads_protected
    if config.data.protect is not None and config.prune.threshold is None and keeps_by_rank:
        schedule.check_protection(rounds, width, config.score.protect_share)
    return rounds


def _token_shares(config: "Config", num_rounds: int) -> list[float]:
    """Each round's share of the recovery tokens, as --recovery-split and --recovery-growth say.

    No share is below the tokens of one optimizer step, nor below two sequences: documents are not
    cut between rounds, so a part of just one sequence may fall short of it.
    """
    recovery, batch = config.recovery, config.trainer.global_batch
    return schedule.token_shares(
        num_rounds,
        growth=1.0 if recovery.recovery_split == "equal" else recovery.recovery_growth,
        num_tokens=recovery.recovery_tokens,
        smallest_tokens=config.data.sequence_length * max(2, batch),
    )

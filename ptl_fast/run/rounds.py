"""The rounds of a run as they stand: their sizes, their parts of the data, and the guard's
decisions, which change both.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from ptl_fast.config.config import NOT_ON_TEXT
from ptl_fast.run import quality_gate

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.data.sampling import Corpus
    from ptl_fast.pruning.schedule import Round

DECISIONS = "decisions.json"


class Course:
    """Schedule and data of all rounds: they follow from the settings and ``decisions`` alone, so a
    continued run has the same.
    """

    corpus: "Corpus"
    training: "list[PackedTokens]"
    """Each round's part of the data."""

    def __init__(
        self, config: "Config", hf_config: "PretrainedConfig", schedule: "list[Round]"
    ) -> None:
        self.config, self.schedule = config, schedule
        self.width, self.num_layers = hf_config.intermediate_size, hf_config.num_hidden_layers
        self.decisions: list[quality_gate.Decision] = []

    def begin(self, corpus: "Corpus", pad: int) -> None:
        """Give each round of the schedule its subset; ``pad`` is the token for padding."""
        self.corpus, self.pad = corpus, pad
        self.training = [self._pack(step) for step in self.schedule]

    def take(self, decisions: list[dict[str, Any]]) -> None:
        """Follow the decisions that a run took before it was interrupted."""
        for content in decisions:
            self._follow(quality_gate.Decision(**content))

    def decisions_as_json(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(decision) for decision in self.decisions]

    def judge(
        self,
        gate: quality_gate.Gate,
        step: "Round",
        measured: float | None,
        tokens: int,
        given: int,
    ) -> quality_gate.Decision:
        """Decide what follows from a round's measurement, and follow it.

        Args:
            measured: None where recovery diverged.
            tokens: that its recovery, or the extension, trained on.
            given: that its recovery could have trained on.
        """
        before = self.schedule[step.number - 2] if step.number > 1 else self
        removed = {
            "neurons": before.width - step.width,
            "layers": before.num_layers - step.num_layers,
        }.get(step.kind, 0)
        next_step, reason = quality_gate.smaller_step(step.kind, removed, self._width_multiple())
        if next_step is not None:
            reason = self._lacks(step.number, next_step)
            next_step = next_step if reason is None else None
        decision = quality_gate.decide(
            gate,
            self.decisions,
            step,
            removed=removed,
            measured=measured,
            tokens=tokens,
            given=given,
            trains=self._trains(given),
            max_extra_recovery=self.config.max_extra_recovery,
            next_step=next_step,
            reason=reason,
        )
        self._follow(decision)
        return decision

    def _follow(self, decision: quality_gate.Decision) -> None:
        """Change the rounds that are to come as a decision says."""
        self.decisions.append(decision)
        if decision.action == "stop":
            del self.schedule[decision.round - 1 :], self.training[decision.round - 1 :]
        if decision.next_step is None:
            return
        groups = self._split(decision.round, decision.next_step)
        self.corpus = self.corpus.cut([[step.recovery_share for step in group] for group in groups])
        self.training = [
            whole if len(group) == 1 else self._pack(step)
            for whole, group in zip(self.training, groups, strict=True)
            for step in group
        ]
        self.schedule = [step for group in groups for step in group]

    def _pack(self, step: "Round") -> "PackedTokens":
        from ptl_fast.data import packing

        source = f"round {step.number}'s part of {self.config.data}"
        return packing.pack(
            self.corpus.subsets[step.number - 1], self.config.sequence_length, self.pad, source
        )

    def _trains(self, given: int) -> bool:
        """Whether there is training to be extended."""
        return self.config.recovery != "none" and (
            given > 0 or not NOT_ON_TEXT.isdisjoint(self.config.recoveries)
        )

    def _split(self, number: int, next_step: int) -> "list[list[Round]]":
        multiple = self._width_multiple()
        return quality_gate.split(
            self.schedule,
            number,
            next_step,
            width=self.width,
            num_layers=self.num_layers,
            multiple=multiple,
        )

    def _width_multiple(self) -> int:
        assert isinstance(self.config.width_multiple, int), "compress.py decides what auto is"
        return self.config.width_multiple

    def _lacks(self, number: int, next_step: int) -> str | None:
        """What some round of the schedule with a smaller step would lack of data, if it lacks
        something.
        """
        groups = self._split(number, next_step)
        corpus = self.corpus.cut([[step.recovery_share for step in group] for group in groups])
        if any(sum(map(len, subset)) < self.config.sequence_length for subset in corpus.subsets):
            return "half of the round's data would not fill a sequence"
        if "grpo" in self.config.recoveries and not all(
            any(text.question for text in texts) for texts in corpus.documents
        ):
            return "half of the round's data would have no question"
        return None


def make_schedule(config: "Config", hf_config: "PretrainedConfig") -> "list[Round]":
    """The rounds that the settings ask for."""
    from ptl_fast.pruning import schedule as schedule_module

    return schedule_module.with_final(_pruning_schedule(config, hf_config), config)


def _pruning_schedule(config: "Config", hf_config: "PretrainedConfig") -> "list[Round]":
    from ptl_fast.pruning import schedule as schedule_module

    width, num_layers = hf_config.intermediate_size, hf_config.num_hidden_layers
    if config.slice_hidden is not None:
        from ptl_fast.baselines import slicegpt

        schedule = schedule_module.make_slicing_schedule(
            config, width, num_layers, hf_config.hidden_size
        )
        assert schedule[0].hidden_size is not None
        slicegpt.sliced_config(
            hf_config, schedule[0].hidden_size
        )  # says so now if this model type cannot be sliced
        return schedule
    if config.drop_layers and hasattr(hf_config, "sliced_hidden_size"):
        raise ValueError(
            f"--drop-layers: the layers of {config.model} cannot go, each one's output stands in"
            " axes of its own (SliceGPT)"
        )
    return schedule_module.make_schedule(config, width, num_layers)

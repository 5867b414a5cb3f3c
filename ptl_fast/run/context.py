"""The state of one run in memory: settings, inputs, schedule, records, and the loaded model.

Only ptl_fast.run uses this class. The stages (scoring, pruning, recovery, evaluation) are given
the values that they need, so they can be used without a run.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptl_fast.recovery import registry
from ptl_fast.run.rounds import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_fast.config.config import Config
    from ptl_fast.evaluation.tasks import EvalTask
    from ptl_fast.model.families import Family
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.recovery.registry import Recovery
    from ptl_fast.recovery.task import OptimizerState
    from ptl_fast.run.folder import RunFolder
    from ptl_fast.run.inputs import Inputs
    from ptl_fast.run.quality_gate import Decision
    from ptl_fast.run.round_data import RoundData
    from ptl_fast.run.rounds import Rounds
    from ptl_fast.scoring.gram import GramMatrices

    Callback = Callable[[dict[str, Any], PreTrainedModel], object]
    """Called after a round with its record and the model."""


@dataclass(kw_only=True)
class LoadedModel:
    """The model in memory, and what is valid only for its present weights."""

    model: "PreTrainedModel"
    family: "Family"
    optimizer_state: "OptimizerState | None" = None
    """Adam moments that --keep-optimizer-state carries from one round to the next."""
    leave: "Callable[[], None] | None" = None
    """Of a model that ZeRO-3 has divided over the ranks: writes it after its training."""
    grams: "GramMatrices | None" = None
    """Gram matrices from scoring that compensation uses again; None once the weights change."""


@dataclass(kw_only=True)
class RunContext:
    """The run that is going on.

    Everything but the loaded model follows from the settings, the inputs and the run's folder, so
    a resumed run rebuilds the same context.
    """

    config: "Config"
    device: str
    original: "PretrainedConfig"
    """The config of the original, unpruned model."""
    saved_dtype: "torch.dtype"
    """Type of the weights in every folder that the run saves."""
    folder: "RunFolder"
    rounds: "Rounds"
    data: "RoundData"
    inputs: "Inputs"
    tasks: "list[EvalTask]"
    """The evaluation tasks of --eval-tasks."""
    dense: dict[str, Any] = field(default_factory=dict)
    """The original model's size and evaluation, the content of dense.json."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Records of the finished rounds, in order: records[0] is round 1's."""
    loaded: LoadedModel | None = None
    """None until the first weights are loaded, and in a run that has nothing left to do."""
    deferred: "Callable[[], None] | None" = None
    """Loads the weights when something asks for them; with --stream nothing may."""

    def follow(self, decision: "Decision") -> None:
        """Change the rest of the schedule, and its data, as the quality gate decided.

        Changes memory only. A resumed run replays the decisions on disk, in their order.
        """
        groups = self.rounds.follow(decision)
        # the schedule first, the data after it: one part of the data for each round
        if decision.stops:
            self.data.stop_before(decision.round)
        if groups is not None:
            self.data.split(groups)

    @property
    def model(self) -> "PreTrainedModel":
        """The model in memory."""
        return self.now.model

    @property
    def now(self) -> LoadedModel:
        """The loaded model and what belongs to it."""
        if self.loaded is None and self.deferred is not None:
            self.deferred()
            self.deferred = None
        assert self.loaded is not None, "weights are loaded before the first round"
        return self.loaded

    def release(self) -> None:
        """Give back the memory of the model, for others to be loaded."""
        self.loaded = self.deferred = None

    def recoveries(self, step: "Round") -> list[str]:
        """The names of a round's recovery methods, in the order in which they train."""
        own = self.config.recovery
        return own.final_recoveries if kind_of(step).is_final else own.recoveries

    def all_recoveries(self) -> "list[Recovery]":
        """Every recovery method that the run uses, in its rounds or as --final-recovery."""
        return registry.find(self.config.recovery.all_recoveries)

"""One run as it stands. Only ptl_fast.run knows this class; stages get what they need of it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptl_fast.recovery import registry
from ptl_fast.run.rounds import kind_of

if TYPE_CHECKING:
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


@dataclass(kw_only=True)
class LoadedModel:
    """The model in memory, and what belongs to its weights as they are now."""

    model: "PreTrainedModel"
    family: "Family"
    optimizer_state: "OptimizerState | None" = None
    """What --keep-optimizer-state hands from one round to the next."""
    grams: "GramMatrices | None" = None
    """Gram matrices kept between scoring and compensation; None once the weights change."""


@dataclass(kw_only=True)
class RunContext:
    """All but the model in memory follows from the settings, the inputs and the run's folder."""

    config: "Config"
    device: str
    original: "PretrainedConfig"
    """The config of the original model."""
    folder: "RunFolder"
    rounds: "Rounds"
    data: "RoundData"
    inputs: "Inputs"
    tasks: "list[EvalTask]"
    """Of --eval-tasks."""
    dense: dict[str, Any] = field(default_factory=dict)
    """The original's size and evaluation."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Of the finished rounds."""
    loaded: LoadedModel | None = None

    def follow(self, decision: "Decision") -> None:
        """Change the rounds that are to come, and their data, as the quality gate decided."""
        groups = self.rounds.follow(decision)
        if decision.stops:
            self.data.stop_before(decision.round)
        if groups is not None:
            self.data.split(groups)

    @property
    def model(self) -> "PreTrainedModel":
        return self.now.model

    @property
    def now(self) -> LoadedModel:
        """What is loaded."""
        assert self.loaded is not None, "weights are loaded before the first round"
        return self.loaded

    def recoveries(self, step: "Round") -> list[str]:
        """The names of a round's recoveries."""
        own = self.config.recovery
        return own.final_recoveries if kind_of(step).is_final else own.recoveries

    def all_recoveries(self) -> "list[Recovery]":
        """Every recovery that the run has."""
        return registry.find(self.config.recovery.all_recoveries)

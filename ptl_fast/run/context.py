"""What the parts of one run share: compress.py's loop, and its two halves, pruning.py and
recovering.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.run.quality_gate import suffix

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_fast.config.config import Config
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.evaluation.tasks import EvalTask
    from ptl_fast.model.families import Family
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.recovery.optimizer_state import Moments
    from ptl_fast.run.folder import RunFolder
    from ptl_fast.run.inputs import Inputs
    from ptl_fast.run.rounds import Course
    from ptl_fast.scoring.gram import GramMatrices


class State:
    """A run as it stands. All but the model in memory follows from the settings, the inputs and the
    run's folder.
    """

    config: "Config"
    device: str
    hf_config: "PretrainedConfig"
    """Of the original."""
    output: Path
    course: "Course"
    inputs: "Inputs"
    folder: "RunFolder"
    dense: dict[str, Any]
    """The original's size and evaluation."""
    records: list[dict[str, Any]]
    """Of the finished rounds."""
    tasks: "list[EvalTask]"
    """Of --eval-tasks."""
    gate_on: tuple[str, str] | None
    """Task and metric of --gate."""
    model: "PreTrainedModel"
    family: "Family"
    moments: "Moments | None" = None
    """What --keep-optimizer-state hands from one round to the next."""
    grams: "GramMatrices | None" = None
    """Of the model as it is now, from its scores to its compensation."""

    @property
    def schedule(self) -> "list[Round]":
        """The rounds, as they stand now: the guard may change them."""
        return self.course.schedule

    @property
    def training(self) -> "list[PackedTokens]":
        """Each round's part of the data."""
        return self.course.training

    def rest(self, step: "Round") -> "list[Round]":
        """The rounds after this one that remove something."""
        return [each for each in self.schedule[step.number :] if each.kind != "final"]

    def is_judged(self, step: "Round") -> bool:
        """Whether the gate holds for this round: not for --final-recovery, which has no pruning to
        be undone.
        """
        return self.gate_on is not None and step.kind != "final"


def optimizer_file(number: int, extension: int = 0) -> str:
    """The file with the optimizer's state after round ``number``, or after an extension of it."""
    return f"round-{number:02d}/optimizer{suffix(extension)}.safetensors"


def next_statistics(number: int, extension: int = 0) -> str:
    """The file with the statistics that round ``number``, or an extension of it, took for the next
    round.
    """
    return f"round-{number:02d}/next_statistics{suffix(extension)}.safetensors"

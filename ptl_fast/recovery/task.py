"""The input and output of a recovery method: RecoveryTask -> RecoveryResult.

A task is plain data: recovery methods do not know the run or its schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.config.distill import DistillSettings
from ptl_fast.config.grpo import GrpoSettings
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.opd import OpdSettings
from ptl_fast.config.trainer import TrainerSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.data.documents import Document
    from ptl_fast.data.packing import PackedTokens

OptimizerState = dict[str, dict[str, "Tensor"]]
"""Adam's {parameter: {exp_avg, exp_avg_sq, step}}; the first two have the parameter's shape."""


class ForwardStatistics(Protocol):
    """Collects statistics of activations during training, for the next round's scores.

    ptl_fast.scoring.statistics implements it; recovery does not import scoring.
    """

    enabled: bool
    """Whether forward passes are counted now: only those near the end of training are."""

    def expect(self, mask: "Tensor") -> None:
        """Announce which tokens of the next forward pass count: bool, False on padding."""

    def tensors(self) -> "dict[str, Tensor]":
        """The statistics of this rank's tokens."""

    def over_ranks(self) -> "dict[str, Tensor]":
        """The statistics summed over all ranks, which a checkpoint saves."""


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """Held-out text for early stopping: a round has recovered when its NLL is low enough."""

    nll: Callable[[], float]
    """Measures the model in memory: its negative log-likelihood, in nats per token."""
    num_tokens: int
    """Tokens that one such measurement reads, from which its cost follows."""
    recovered: float
    """The round has recovered once the NLL is at most this."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of training on text.

    The defaults train on all tokens, on a learning-rate schedule of the round's own, from a fresh
    optimizer.
    """

    schedule_position: tuple[int, int] | None = None
    """(optimizer steps of the rounds before, of the rounds after) if one learning-rate schedule
    spans all rounds.
    """
    held_out: HeldOutText | None = None
    """Stops training early once the round has recovered."""
    make_penalty: "Callable[[], Callable[[], Tensor] | None] | None" = None
    """Called once, when the closing phase begins (see token_budget). The function it returns is
    called in every forward pass from then on, and its value added to the loss.
    """
    optimizer_state: OptimizerState | None = None
    """The state to start from; None starts from a fresh optimizer."""
    keep_optimizer_state: bool = False
    """Whether the result has the optimizer state at the end."""
    statistics: ForwardStatistics | None = None
    """Collects statistics near the end of training, for the next round's scores."""
    statistics_tokens: int = 0
    """From how many of the last tokens."""


@dataclass(frozen=True, kw_only=True)
class RecoveryTask:
    """What one round recovers with: data, settings and folders. Rounds do not share data."""

    tokens: "PackedTokens"
    """The round's documents, packed into sequences."""
    num_tokens: int
    """Tokens to train on; if the data has fewer, it is repeated."""
    name: str
    """The round's name, for messages."""
    folder: RecoveryFolder
    """For checkpoints; ``RecoveryFolder(path)`` without a run. If it holds one, training resumes
    from it.
    """
    log_folder: Path
    """For TensorBoard logs."""
    run_name: str | None = None
    """The training's name in other trackers, which no other training may have; None: ``name``."""
    tokenizer: "PreTrainedTokenizerBase"
    # each method reads its own group; the defaults serve those who call a method without a run
    model: ModelSettings = field(default_factory=ModelSettings)
    """Settings of --model: without --teacher, that model is the teacher of distill and opd."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    opd: OpdSettings = field(default_factory=OpdSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    seed: int = 0
    problems: "list[Document]" = field(default_factory=list)
    """The round's documents as text, with question and answer apart; empty if no recovery of the
    run needs them.
    """
    options: TrainingOptions = field(default_factory=TrainingOptions)
    trains_on_template: bool = True
    """Whether any recovery of the run trains on --template's text; prompts must then match it."""
    leave: "Callable[[], None] | None" = None
    """Writes the trained weights of a model that ZeRO-3 has divided over the ranks before, which is
    of no use afterwards; None: they stay in the model. Only for methods that know it
    (``Recovery.takes_divided``).
    """
    has_own_ffn: bool = False
    """Whether the model has ptl_kernels' fused FFN, so that Liger must not replace the FFN."""

    @property
    def sequence_length(self) -> int:
        """Tokens per packed sequence."""
        return self.tokens.input_ids.shape[1]


@dataclass(frozen=True, kw_only=True)
class RecoveryResult:
    """What a round's recovery took; the model itself was trained in place."""

    num_steps: int = 0
    """Optimizer steps on text."""
    num_tokens: int = 0
    """Tokens of text trained on; fewer than the task's if training stopped early."""
    checks: list[tuple[int, float]] = field(default_factory=list)
    """(step, NLL of the held-out text) of each check for early stopping."""
    optimizer_state: OptimizerState | None = None
    """Adam moments at the end, if the task asked for them."""
    details: dict[str, Any] = field(default_factory=dict)
    """{method: what else the round's record keeps}, of methods with steps of their own."""

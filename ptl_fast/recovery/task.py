"""What a recovery is given, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ptl_fast.config.distill import DistillSettings
from ptl_fast.config.grpo import GrpoSettings
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.trainer import TrainerSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.data.documents import Document
    from ptl_fast.data.packing import PackedTokens

OptimizerState = dict[str, dict[str, "Tensor"]]
"""Adam's {parameter: {exp_avg, exp_avg_sq, step}}; the first two have the parameter's shape."""


class ForwardStatistics(Protocol):
    """Counts the forward passes of training, for the next round's scores (ptl_fast.scoring has it)."""

    enabled: bool

    def expect(self, mask: "Tensor") -> None:
        """Say which tokens of the next forward pass count."""

    def tensors(self) -> "dict[str, Tensor]":
        """This rank's statistics."""

    def over_ranks(self) -> "dict[str, Tensor]":
        """All ranks' statistics as one, which a checkpoint keeps."""


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """Text that no round trains on, by which a round knows that it has recovered."""

    nll: Callable[[], float]
    """The model's negative log-likelihood per token now."""
    num_tokens: int
    """Tokens that this reads."""
    recovered: float
    """The round has recovered when the NLL is at most this."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How training on text spends its tokens; as it stands: all of them, on a learning-rate
    schedule of its own, from a fresh optimizer.
    """

    schedule_position: tuple[int, int] | None = None
    """Optimizer steps of the rounds before and after, where one learning-rate schedule spans them
    all.
    """
    held_out: HeldOutText | None = None
    """Lets the round end early."""
    make_penalty: "Callable[[], Callable[[], Tensor] | None] | None" = None
    """Called when the closing phase begins; what it returns is computed in every forward pass and
    added to the loss.
    """
    optimizer_state: OptimizerState | None = None
    """At the start."""
    keep_optimizer_state: bool = False
    """Whether to return it at the end."""
    statistics: ForwardStatistics | None = None
    """Counts forward passes near the end, for the next round's scores."""
    statistics_tokens: int = 0
    """How many tokens of the end it counts."""


@dataclass(frozen=True, kw_only=True)
class RecoveryTask:
    """What one round recovers with; no other round has the same data."""

    tokens: "PackedTokens"
    """The round's documents."""
    num_tokens: int
    """How many of them to train on; more than there are repeats them."""
    name: str
    """The round, for messages."""
    folder: Path
    """For checkpoints; where it holds one, training goes on from there."""
    log_folder: Path
    """For TensorBoard."""
    tokenizer: "PreTrainedTokenizerBase"
    model: ModelSettings = field(default_factory=ModelSettings)
    """Of --model, which distillation loads as its teacher."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    seed: int = 0
    problems: "list[Document]" = field(default_factory=list)
    """The round's documents once more, as text with question and answer apart; only for recoveries
    that need them.
    """
    options: TrainingOptions = field(default_factory=TrainingOptions)
    trains_on_template: bool = True
    """Whether any recovery of the run trains on text as --template joins it."""
    has_own_ffn: bool = False
    """Whether ptl_kernels' fused FFN stands in the model, so that Liger leaves the FFN alone."""

    @property
    def sequence_length(self) -> int:
        """Tokens of a packed sequence."""
        return self.tokens.input_ids.shape[1]


@dataclass(frozen=True, kw_only=True)
class RecoveryResult:
    """What a round's recovery took."""

    num_steps: int = 0
    num_tokens: int = 0
    checks: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out NLL)."""
    optimizer_state: OptimizerState | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """What else the round's record keeps, for each recovery that has something to say."""

    @property
    def has_trained(self) -> bool:
        """Whether the model changed: with until-recovered there may have been nothing to do."""
        return self.num_steps > 0 or bool(self.details)

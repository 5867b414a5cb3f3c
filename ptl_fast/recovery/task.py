"""What a recovery is given: one round's data, and what else it may use."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ptl_fast.recovery.token_budget import Spending

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ptl_fast.data.documents import Document
    from ptl_fast.data.packing import PackedTokens


class Watch(Protocol):
    """What counts the forward passes of training (ptl_fast.scoring.statistics has it)."""

    enabled: bool

    def expect(self, mask: "Tensor") -> None:
        """Say which tokens of the next forward pass count."""

    def tensors(self) -> "dict[str, Tensor]":
        """This rank's statistics."""

    def over_ranks(self) -> "dict[str, Tensor]":
        """All ranks' statistics as one, which a checkpoint keeps."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
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
    problems: "list[Document]" = field(default_factory=list)
    """The round's documents once more, as text with question and answer apart; only for recoveries
    that need them.
    """
    watch: Watch | None = None
    """Counts forward passes near the end, for the next round's scores."""
    spending: Spending = field(default_factory=Spending)

"""What every training has: batches, learning rate, memory, DeepSpeed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ptl_fast.base import json_text, trackers
from ptl_fast.config.checking import (
    FREE,
    ROUNDING,
    as_text,
    check_at_least_one,
    check_finite,
    nearest,
    nearest_file,
    unknown,
)

DEEPSPEED_FOLDER = Path(__file__).parent / "presets" / "deepspeed"


@dataclass(kw_only=True)
class TrainerSettings:
    """What every training has: batches, learning rate, memory, DeepSpeed."""

    learning_rate: float = 1e-5
    """Peak learning rate of recovery (warm-up 5%, then a cosine; with until-recovered and a
    schedule each round, constant until the round has recovered)."""

    global_batch: int = 32
    """Sequences in an optimizer step, over all ranks and accumulation steps."""

    micro_batch: int = field(default=2, metadata=ROUNDING)
    """Sequences in one forward pass of one rank."""

    gradient_checkpointing: bool = field(default=True, metadata=ROUNDING)
    """Recompute activations in the backward pass of recovery: less memory, about a third more time.
    """

    fused_ffn: bool = False
    """Train on ptl_kernels' fused activation: it keeps one activation less for the backward pass
    than eager modules do, and rounds once where they round twice."""

    liger: bool = False
    """Train on Liger's kernels (pip install liger-kernel; GPUs only): norms, rotary embedding, FFN,
    and a loss that never stores the logits. With --fused-ffn or --score-during-recovery, the FFN
    stays ours."""

    rollouts: Literal["transformers", "vllm"] = "transformers"
    """What samples the answers of grpo and opd; vllm must be installed, and shares the GPUs with
    the training."""

    deepspeed: str | None = None
    """zero2, zero3, or a DeepSpeed JSON file; start with the deepspeed or torchrun launcher for
    several ranks.
    """

    checkpoint_minutes: float = field(default=10.0, metadata=FREE)
    """Minutes between checkpoints inside a round's recovery."""

    report_to: str = field(default="tensorboard", metadata=FREE)
    """Where curves of training, and sizes, scores and evaluation of every round, are logged:
    tensorboard (in the run's log/), wandb, trackio, several with commas, or none.
    """

    def __post_init__(self) -> None:
        self.deepspeed = as_text(self.deepspeed)

    @property
    def trackers(self) -> list[str]:
        """The trackers of --report-to, keys of TRACKERS."""
        return [] if self.report_to == trackers.NONE else self.report_to.split(",")

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        check_finite(self, ["learning_rate", "checkpoint_minutes"])
        if self.learning_rate <= 0 or self.checkpoint_minutes < 0:
            raise ValueError("--learning-rate must be positive, --checkpoint-minutes at least 0")
        check_at_least_one(self, ["global_batch", "micro_batch"])
        for name in self.trackers:
            if name not in trackers.TRACKERS:
                raise ValueError(unknown("--report-to", name, [*trackers.TRACKERS, trackers.NONE]))


def is_shipped(name: str) -> bool:
    """Whether --deepspeed names a file that comes with the package."""
    return (DEEPSPEED_FOLDER / f"{name}.json").is_file()


def deepspeed_file(name: str) -> Path:
    """The JSON file of --deepspeed: a shipped one by name, or a path.

    Raises:
        ValueError: there is no such file.
    """
    choices = sorted(path.stem for path in DEEPSPEED_FOLDER.glob("*.json"))
    file = DEEPSPEED_FOLDER / f"{name}.json" if is_shipped(name) else Path(name)
    if file.is_file():
        return file
    raise ValueError(
        f"--deepspeed {name}: no such file; choose {', '.join(choices)} or give a JSON file"
        f"{nearest(name, choices) or nearest_file(Path(name))}"
    )


def zero_stage(name: str | None) -> Any:
    """The stage of ZeRO that --deepspeed names; 0 without one."""
    zero = {} if name is None else read_deepspeed(name).get("zero_optimization", {})
    return zero.get("stage", 0) if isinstance(zero, dict) else zero


def read_deepspeed(name: str) -> dict[str, Any]:
    """What the JSON file of --deepspeed says.

    Raises:
        ValueError: there is no such file, or it is no JSON object.
    """
    file = deepspeed_file(name)
    try:
        content = json_text.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"--deepspeed {name} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--deepspeed {name} holds no JSON object")
    return content

"""Recovery by reinforcement learning (GRPO)."""

from dataclasses import dataclass, field
from typing import Literal

from ptl_fast.config.checking import ROUNDING, check_at_least_one, check_finite


@dataclass(kw_only=True)
class GrpoSettings:
    """Recovery by reinforcement learning (GRPO)."""

    grpo_steps: int | None = None
    """Optimizer steps of grpo in a round (default: as many as see each problem of the round's part
    of --data once).
    """

    grpo_prompts: int = 32
    """Problems in one step of grpo, over all ranks."""

    grpo_rollouts: int = 8
    """Responses that are sampled to each of them, and compared with one another."""

    grpo_temperature: float = 1.0
    """Temperature of that sampling."""

    grpo_learning_rate: float = 1e-6
    """Learning rate of grpo (warm-up 5%, then constant)."""

    grpo_kl: float = 0.0
    """Weight of the KL divergence from the model as it was when the round's grpo began. 0 needs no
    second model in memory.
    """

    grpo_prompt: Literal["auto", "template", "chat"] = "auto"
    """How grpo asks: template (the beginning of --template, as cpt trains it; of a chat the turns
    before its last answer), or chat (the tokenizer's chat template, and the request to put the
    answer in a box). auto is chat where there is a chat template and nothing in the run trains on
    --template."""

    grpo_prompt_tokens: int = 1024
    """Problems whose prompt is longer are left out of grpo."""

    grpo_response_tokens: int = 1024
    """Where a response of grpo is cut off."""

    grpo_micro_batch: int | None = field(default=None, metadata=ROUNDING)
    """Rollouts in one forward pass of one rank, at most (default: as many as fit, at their longest,
    into the tokens of --micro-batch sequences, and at least one)."""

    reward_weights: str = "accuracy=0.9,format=0.1"
    """What grpo rewards, NAME=WEIGHT[,NAME=WEIGHT]: accuracy (the marked answer equals the data's,
    by math-verify) and format (an answer is marked at all: in a box, or after #### or "answer
    is")."""

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        names = "grpo_steps grpo_prompts grpo_prompt_tokens grpo_response_tokens grpo_micro_batch"
        check_at_least_one(self, names.split())
        check_finite(self, ["grpo_learning_rate", "grpo_temperature", "grpo_kl"])
        if self.grpo_rollouts < 2:
            raise ValueError(
                f"--grpo-rollouts {self.grpo_rollouts} must be at least 2: grpo compares responses"
                " to one problem"
            )
        if self.grpo_learning_rate <= 0 or self.grpo_temperature <= 0 or self.grpo_kl < 0:
            raise ValueError(
                "--grpo-learning-rate and --grpo-temperature must be positive, --grpo-kl at least 0"
            )

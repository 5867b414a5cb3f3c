"""Recovery by on-policy distillation (opd)."""

from dataclasses import dataclass, field
from typing import Literal

from ptl_fast.config.checking import ROUNDING, check_at_least_one, check_finite

# Without --opd-start-tokens, the first rollouts are this part of the longest.
START_SHARE = 4


@dataclass(kw_only=True)
class OpdSettings:
    """Recovery by on-policy distillation (opd)."""

    opd_steps: int | None = None
    """Optimizer steps of opd in a round (default: as many as ask each question of the round's part
    of --data once).
    """

    opd_prompts: int = 32
    """Questions in one step of opd, over all ranks. The model answers each once."""

    opd_max_tokens: int = 1024
    """Where an answer of opd is cut off in the second half of its steps. One that repeats itself is
    cut off at once."""

    opd_start_tokens: int | None = None
    """Where it is cut off at first (default: at a quarter of --opd-max-tokens); the limit then
    grows evenly until half of the steps are done."""

    opd_temperature: float = 1.0
    """Temperature at which opd samples answers. The divergence is of the models' distributions as
    they are."""

    opd_divergence: Literal["reverse", "jsd"] = "reverse"
    """What opd makes small at each token of an answer: reverse is KL(model || teacher), jsd the
    generalised Jensen-Shannon divergence of --opd-jsd-beta."""

    opd_jsd_beta: float = 0.5
    """With --opd-divergence jsd: the teacher's weight beta in the mixture of both distributions, in
    (0, 1). Small values are near KL(teacher || model), large ones near KL(model || teacher)."""

    opd_learning_rate: float = 1e-5
    """Peak learning rate of opd (warm-up 5%, then a cosine)."""

    opd_prompt: Literal["auto", "template", "chat"] = "auto"
    """How opd asks: as --grpo-prompt, but a chat asks for a box only where the data's answer marks
    a final answer, and answers need not be given."""

    opd_prompt_tokens: int = 1024
    """Questions whose prompt is longer are left out of opd."""

    opd_micro_batch: int | None = field(default=None, metadata=ROUNDING)
    """Answers in one forward pass of one rank, at most (default: as many as fit, at their longest,
    into the tokens of --micro-batch sequences, and at least one)."""

    @property
    def start_tokens(self) -> int:
        """Where the first answers are cut off."""
        return self.opd_start_tokens or max(1, self.opd_max_tokens // START_SHARE)

    @property
    def beta(self) -> float:
        """The teacher's weight in the mixture; 1 stands for the reverse KL divergence."""
        return 1.0 if self.opd_divergence == "reverse" else self.opd_jsd_beta

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        counts = "steps prompts max_tokens start_tokens prompt_tokens micro_batch"
        check_at_least_one(self, [f"opd_{name}" for name in counts.split()])
        check_finite(self, ["opd_learning_rate", "opd_temperature"])
        if self.start_tokens > self.opd_max_tokens:
            raise ValueError(
                f"--opd-start-tokens {self.opd_start_tokens} is above --opd-max-tokens"
                f" {self.opd_max_tokens}: answers grow from the first to the second"
            )
        if self.opd_learning_rate <= 0 or self.opd_temperature <= 0:
            raise ValueError("--opd-learning-rate and --opd-temperature must be positive")
        if not 0 < self.opd_jsd_beta < 1:
            raise ValueError(
                f"--opd-jsd-beta {self.opd_jsd_beta} is outside (0, 1); KL(model || teacher) is"
                " --opd-divergence reverse"
            )

"""What a recovery costs, for the dry run: tokens it trains on, FLOPs a token, models in memory.

These are estimates from the model's config; ptl_fast.model.flops counts exactly.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptl_fast.model import flops

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.grpo import GrpoSettings

# The backward pass costs two forward passes. Recomputing for gradient checkpointing comes on top.
TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The round that a recovery is estimated for."""

    config: "PretrainedConfig"
    """Of the model that trains."""
    original: "PretrainedConfig"
    """Of the original model, which distillation takes for the teacher."""
    num_tokens: float | None
    """This recovery's part of the round's text; None where the data decides."""
    sequence_length: int
    gradient_checkpointing: bool
    grpo: "GrpoSettings"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a recovery costs."""

    num_tokens: float | None
    """That it trains on; None where that depends on the data."""
    flops_per_token: float
    num_weight_copies: int = 0
    """Models in memory besides the one that trains."""


def nothing(situation: Situation) -> Estimate:
    """No training."""
    return Estimate(num_tokens=0, flops_per_token=0)


def on_text(situation: Situation) -> Estimate:
    """Continual pre-training."""
    length = situation.sequence_length
    return Estimate(
        num_tokens=situation.num_tokens,
        flops_per_token=training_flops(situation, TRAINING_PASSES, length),
    )


def distillation(situation: Situation) -> Estimate:
    """Continual pre-training, and the teacher's forward pass over every token."""
    student, length = on_text(situation), situation.sequence_length
    teacher = flops.flops_per_sample(situation.original, length, causal=True) / length
    return Estimate(
        num_tokens=student.num_tokens, flops_per_token=student.flops_per_token + teacher
    )


def grpo(situation: Situation) -> Estimate:
    """Training on responses that are all as long as they may be.

    Prompts, most of them far shorter than they may be, are not counted, nor is sampling, which is
    bound by memory traffic and not by FLOPs. Log-probabilities under a reference model, and under
    the policy where another program sampled, are a forward pass each.
    """
    grpo, num_tokens = situation.grpo, None
    if grpo.grpo_steps is not None:
        rollouts = grpo.grpo_steps * grpo.grpo_prompts * grpo.grpo_rollouts
        num_tokens = rollouts * grpo.grpo_response_tokens
    has_reference = grpo.grpo_kl > 0
    passes = TRAINING_PASSES + has_reference + (grpo.rollouts == "vllm")
    length = grpo.grpo_prompt_tokens + grpo.grpo_response_tokens
    return Estimate(
        num_tokens=num_tokens,
        flops_per_token=training_flops(situation, passes, length),
        num_weight_copies=int(has_reference),
    )


def training_flops(situation: Situation, num_passes: int, length: int) -> float:
    """FLOPs for one token of a full sequence; with gradient checkpointing the decoder runs forward
    twice.
    """
    forward = flops.flops_per_sample(situation.config, length, causal=True)
    decoder = flops.flops_per_sample(situation.config, length, causal=True, lm_head=False)
    return (num_passes * forward + situation.gradient_checkpointing * decoder) / length

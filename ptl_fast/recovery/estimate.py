"""Estimate what a recovery costs, for the dry run: tokens, FLOPs per token, models in memory.

The estimates come from configs and settings alone, without data or weights. Each method in
ptl_fast.recovery.registry has one of these functions; ptl_fast.model.flops counts a forward pass.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptl_fast.model import flops
from ptl_fast.recovery.on_policy.rollouts import mean_longest_answer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.grpo import GrpoSettings
    from ptl_fast.config.opd import OpdSettings

# A training step in forward passes: the backward pass costs two. The recomputation of gradient
# checkpointing comes on top.
TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The round and the settings that a recovery is estimated for."""

    config: "PretrainedConfig"
    """Config of the model that is trained, after the round's pruning."""
    original: "PretrainedConfig"
    """Config of the original model, which stands for the teacher's."""
    num_tokens: float | None
    """Tokens of text that this method trains on; None if the amount of data decides."""
    sequence_length: int
    """Tokens per packed sequence."""
    gradient_checkpointing: bool
    grpo: "GrpoSettings"
    opd: "OpdSettings"
    vllm: bool
    """Whether vLLM samples the answers."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a recovery."""

    num_tokens: float | None
    """Tokens that it trains on; None if that depends on the data."""
    flops_per_token: float
    """FLOPs of training per token, with all forward and backward passes."""
    num_weight_copies: int = 0
    """Models of the trained one's size in memory besides it."""
    with_teacher: bool = False
    """Whether the teacher is in memory besides it."""


def nothing(situation: Situation) -> Estimate:
    """The cost of no training."""
    return Estimate(num_tokens=0, flops_per_token=0)


def on_text(situation: Situation) -> Estimate:
    """The cost of continual pre-training."""
    length = situation.sequence_length
    return Estimate(
        num_tokens=situation.num_tokens,
        flops_per_token=training_flops(situation, TRAINING_PASSES, length),
    )


def distillation(situation: Situation) -> Estimate:
    """The cost of distillation: continual pre-training, and the teacher's forward pass per token.

    The teacher is no weight copy: its predictions are computed ahead and read from a cache.
    """
    student, length = on_text(situation), situation.sequence_length
    teacher = flops.flops_per_sample(situation.original, length, causal=True) / length
    return Estimate(
        num_tokens=student.num_tokens, flops_per_token=student.flops_per_token + teacher
    )


def grpo(situation: Situation) -> Estimate:
    """The cost of GRPO's training, an upper estimate: every response has the maximum length.

    Log-probabilities under the reference model are one more forward pass; so are those under the
    policy if vLLM sampled. Not counted are prompts, most of which are far below their maximum, and
    sampling itself, which is bound by memory traffic and not by FLOPs.
    """
    grpo, num_tokens = situation.grpo, None
    # otherwise the number of questions in the data decides
    if grpo.grpo_steps is not None:
        rollouts = grpo.grpo_steps * grpo.grpo_prompts * grpo.grpo_rollouts
        num_tokens = rollouts * grpo.grpo_response_tokens
    # without a KL penalty there is no reference model
    has_reference = grpo.grpo_kl > 0
    passes = TRAINING_PASSES + has_reference + situation.vllm
    length = grpo.grpo_prompt_tokens + grpo.grpo_response_tokens
    return Estimate(
        num_tokens=num_tokens,
        flops_per_token=training_flops(situation, passes, length),
        num_weight_copies=int(has_reference),
    )


def on_policy(situation: Situation) -> Estimate:
    """The cost of on-policy distillation's training, an upper estimate: every answer is as long as
    it may be in its step.

    The teacher judges each answer in one forward pass. Not counted are prompts and sampling, as for
    GRPO.
    """
    opd, num_tokens = situation.opd, None
    length = opd.opd_prompt_tokens + opd.opd_max_tokens
    # otherwise the number of questions in the data decides
    if opd.opd_steps is not None:
        num_tokens = opd.opd_steps * opd.opd_prompts * mean_longest_answer(opd)
    teacher = flops.flops_per_sample(situation.original, length, causal=True) / length
    return Estimate(
        num_tokens=num_tokens,
        flops_per_token=training_flops(situation, TRAINING_PASSES, length) + teacher,
        with_teacher=True,
    )


def training_flops(situation: Situation, num_passes: int, length: int) -> float:
    """FLOPs of training per token, in full sequences of ``length`` tokens.

    Args:
        num_passes: cost of a step in forward passes, without what gradient checkpointing adds.
    """
    forward = flops.flops_per_sample(situation.config, length, causal=True)
    # gradient checkpointing runs the decoder layers forward once more, but not the head
    decoder = flops.flops_per_sample(situation.config, length, causal=True, lm_head=False)
    return (num_passes * forward + situation.gradient_checkpointing * decoder) / length

"""What GRPO samples."""

from ptl_fast.config.grpo import GrpoSettings
from ptl_fast.recovery.grpo.rewards import gold_answer
from ptl_fast.recovery.rollouts import Rollouts


def rollouts_of(grpo: GrpoSettings) -> Rollouts:
    """The answers of a step, by the settings."""
    return Rollouts(
        method="grpo",
        steps=grpo.grpo_steps,
        prompts=grpo.grpo_prompts,
        per_prompt=grpo.grpo_rollouts,
        prompt=grpo.grpo_prompt,
        prompt_tokens=grpo.grpo_prompt_tokens,
        answer_tokens=grpo.grpo_response_tokens,
        answer_flag="--grpo-response-tokens",
        micro_batch=grpo.grpo_micro_batch,
        gold=gold_answer,
    )

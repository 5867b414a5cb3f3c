"""What on-policy distillation samples: one answer to each question, short ones at first."""

from ptl_fast.config.opd import OpdSettings
from ptl_fast.recovery.rollouts import Rollouts

# Share of the steps after which answers may be as long as --opd-max-tokens.
GROWTH_SHARE = 0.5


def rollouts_of(opd: OpdSettings) -> Rollouts:
    """The answers of a step, by the settings."""
    return Rollouts(
        method="opd",
        steps=opd.opd_steps,
        prompts=opd.opd_prompts,
        prompt=opd.opd_prompt,
        prompt_tokens=opd.opd_prompt_tokens,
        answer_tokens=opd.opd_max_tokens,
        answer_flag="--opd-max-tokens",
        micro_batch=opd.opd_micro_batch,
    )


def longest_answer(opd: OpdSettings, step: int, num_steps: int) -> int:
    """Where answers are cut off in a step: from ``start_tokens`` evenly up to ``opd_max_tokens``.

    After a pruned model's first mistakes the teacher judges tokens of a text that it would not have
    begun. So long answers wait until the beginnings are repaired.

    Args:
        step: from 0.
    """
    first, last = opd.start_tokens, opd.opd_max_tokens
    grown = min(1.0, step / (GROWTH_SHARE * num_steps))
    return first + round(grown * (last - first))


def mean_longest_answer(opd: OpdSettings) -> float:
    """The mean of ``longest_answer`` over many steps."""
    first, last = opd.start_tokens, opd.opd_max_tokens
    return GROWTH_SHARE * (first + last) / 2 + (1 - GROWTH_SHARE) * last

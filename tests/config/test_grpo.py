"""Reinforcement learning needs several responses, and numbers that can be used."""

from typing import Any

import pytest

from ptl_fast.config.grpo import GrpoSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grpo_rollouts": 1}, "--grpo-rollouts 1 must be at least 2"),
        ({"grpo_temperature": 0.0}, "--grpo-temperature must be positive"),
        (
            {"grpo_learning_rate": 0.0},
            "--grpo-learning-rate and --grpo-temperature must be positive",
        ),
        ({"grpo_kl": -0.1}, "--grpo-kl at least 0"),
        ({"grpo_prompts": 0}, "--grpo-prompts 0 must be at least 1"),
        ({"grpo_steps": 0}, "--grpo-steps 0 must be at least 1"),
        ({"grpo_learning_rate": float("nan")}, "--grpo-learning-rate nan must be a finite number"),
        ({"grpo_temperature": float("inf")}, "--grpo-temperature inf must be a finite number"),
        ({"grpo_kl": float("nan")}, "--grpo-kl nan must be a finite number"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrpoSettings(**values).check()


def test_defaults_make_sense() -> None:
    GrpoSettings().check()

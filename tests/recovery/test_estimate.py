"""What a recovery costs, for the dry run: tokens, and FLOPs for each."""

from typing import Any

import pytest

from ptl_fast.config.config import Config
from ptl_fast.config.presets import shipped_config
from ptl_fast.model import flops
from ptl_fast.run import recovery_costs
from ptl_fast.run.start import parse
from support.recovery import grpo_config, opd_config


def per_token(model: Any, settings: Config, recovery: str) -> float:
    """FLOPs that a recovery executes for one token."""
    return recovery_costs.estimates(model, model, settings, [recovery], 1)[0].flops_per_token


def test_training_flops_count_the_recomputed_decoder_but_not_the_head_again() -> None:
    config: Any = shipped_config("ptl-demo")
    settings = parse(["--sequence-length", "128", "--gradient-checkpointing", "false"])
    forward = flops.flops_per_sample(config, 128, causal=True) / 128
    plain = per_token(config, settings, "cpt")
    assert plain == pytest.approx(3 * forward)
    settings.trainer.gradient_checkpointing = True
    again = per_token(config, settings, "cpt") - plain
    assert again == pytest.approx(forward - 2 * config.vocab_size * config.hidden_size)
    assert per_token(config, settings, "none") == 0


def counted(settings: Config, num_tokens: int | None, names: list[str]) -> list[float | None]:
    """Tokens that each of these recoveries trains on, in the demo's dry run."""
    demo: Any = shipped_config("ptl-demo")
    parts = recovery_costs.estimates(demo, demo, settings, names, num_tokens)
    return [part.num_tokens for part in parts]


def test_dry_run_counts_rollouts_and_text() -> None:
    settings = grpo_config(grpo_kl=0.1)
    assert counted(settings, 1000, ["cpt", "grpo"]) == [1000, 4 * 2 * 4 * 6]
    assert counted(settings, None, ["cpt"]) == [None]
    assert counted(grpo_config(grpo_steps=None), 1000, ["grpo"]) == [None]
    assert counted(settings, 1000, ["none"]) == [0]


def test_dry_run_counts_growing_answers_and_their_judge() -> None:
    """Up to 2 tokens at first and 8 in the second half of the steps, 6.5 in the mean; one pass of
    the original for each, whatever the student's size.
    """
    settings = opd_config("teacher")
    assert counted(settings, 1000, ["cpt", "opd"]) == [1000, 4 * 8 * 6.5]
    assert counted(opd_config("teacher", opd_steps=None), 1000, ["opd"]) == [None]
    demo: Any = shipped_config("ptl-demo")
    smaller: Any = flops.resized(demo, 192, 4)
    (one,) = recovery_costs.estimates(smaller, demo, settings, ["opd"], None)
    student, teacher = (
        flops.flops_per_sample(each, 72, causal=True) / 72 for each in (smaller, demo)
    )
    assert one.flops_per_token == pytest.approx(3 * student + teacher)
    assert one.with_teacher

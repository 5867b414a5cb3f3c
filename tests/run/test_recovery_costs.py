"""What recovery costs: hours, and memory by ZeRO's stages and by gradient checkpointing."""

import json
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.config.presets import shipped_config
from ptl_fast.model import flops
from ptl_fast.run import recovery_costs
from ptl_fast.run.start import parse
from ptl_fast.run.this_machine import chosen
from support.mixtures import EXPERT_WIDTH, make_mixture
from support.recovery import grpo_config


def test_hours_are_work_over_speed() -> None:
    """2 GPUs at 40% of 312 TFLOP/s do 2 * 0.4 * 312e12 * 3600 operations in an hour."""
    num_gpus, gpu = chosen("2xA100-80GB")
    assert recovery_costs.hours(3 * 2 * 0.4 * 312e12 * 3600, num_gpus, gpu) == pytest.approx(3)


@pytest.mark.parametrize(
    ("stage", "dtype", "bytes_per_parameter"),
    [
        (0, "bfloat16", 16),
        (1, "bfloat16", 7),
        (2, "bfloat16", 5.5),
        (3, "bfloat16", 4),
        (2, "float32", 7),
    ],
)
def test_stages_divide_what_zero_says(
    stage: int, dtype: str, bytes_per_parameter: float, tmp_path: Path
) -> None:
    """On 4 GPUs: 2 + 2 + 12, then 2 + 2 + 3, 2 + 0.5 + 3, 0.5 + 0.5 + 3; in float32 4 + 1 + 2."""
    file = tmp_path / "stage.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    config: Any = shipped_config("ptl-demo")
    settings = parse(["--deepspeed", str(file), "--dtype", dtype])
    num_parameters = flops.count_weights(config).num_parameters
    size = 4 if dtype == "float32" else 2
    assert recovery_costs._state_bytes(num_parameters, settings, 4, size) == pytest.approx(
        bytes_per_parameter * num_parameters, abs=1
    )
    alone = parse(["--dtype", dtype])
    assert recovery_costs._state_bytes(num_parameters, alone, 4, size) == 16 * num_parameters


def test_gradient_checkpointing_keeps_one_layer_and_every_input() -> None:
    config: Any = shipped_config("ptl-demo")
    settings = parse(
        ["--micro-batch", "3", "--sequence-length", "10", "--gradient-checkpointing", "true"]
    )
    layer = 2 * (6 * 128 + 2 * 128 + 2 * 64 + 4 * 768)
    assert recovery_costs._activation_bytes(config, settings, 2) == 30 * (
        4 * 2 * 128 + layer + 10 * 306
    )
    settings.trainer.gradient_checkpointing = False
    assert recovery_costs._activation_bytes(config, settings, 2) == 30 * (4 * layer + 10 * 306)


def test_activations_of_a_mixture_are_those_of_the_experts_that_a_token_goes_to() -> None:
    config, settings = make_mixture("mixtral", experts=8).config, parse(["--model", "it"])
    more = make_mixture("mixtral", experts=8, num_experts_per_tok=3).config
    tokens = settings.trainer.micro_batch * settings.data.sequence_length
    two, three = (recovery_costs._activation_bytes(each, settings, 2) for each in (config, more))
    # with gradient checkpointing of one layer alone: 4 tensors of an expert's width, 2 bytes each
    layers = 1 if settings.trainer.gradient_checkpointing else 3
    assert three - two == tokens * layers * 2 * 4 * EXPERT_WIDTH


def test_reference_costs_a_forward_pass_and_a_copy_of_the_weights() -> None:
    demo: Any = shipped_config("ptl-demo")
    plain, with_kl = (grpo_config(dry_run_gpus="1xH200", **each) for each in ({}, {"grpo_kl": 0.1}))
    costs = [
        recovery_costs.estimates(demo, demo, each, ["grpo"], None)[0].flops_per_token
        for each in (plain, with_kl)
    ]
    assert costs[1] / costs[0] == pytest.approx(4 / 3)
    num_bytes = [recovery_costs.training_bytes(demo, demo, each, 1) for each in (plain, with_kl)]
    assert num_bytes[1] - num_bytes[0] == 2 * 1_416_576

"""Costs of a run's stages: what they follow from, and that they are near what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from ptl_fast.model import flops
from ptl_fast.run import dry_run, stage_costs
from ptl_fast.run.gpus import GPUS
from ptl_fast.run.rounds import make_schedule
from ptl_fast.run.start import parse

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WIDE = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def costs(*flags: str, rounds: int = 1) -> dict[str, stage_costs.Cost]:
    fixed = ["--model", "it", "--keep", "0.65", "--rounds", str(rounds), "--width-multiple", "128"]
    config = parse([*fixed, "--dry-run-gpus", "1xH100-80GB", *flags])
    schedule = make_schedule(config, WIDE)
    found = stage_costs.of_run(dry_run.costed(WIDE, config, schedule))
    return {each.stage: each for each in found}


def seconds(cost: stage_costs.Cost) -> float:
    assert cost.seconds is not None
    return cost.seconds


def test_scoring_is_passes_gram_matrices_and_elimination() -> None:
    """By hand, for one H100: its shares of 989 TFLOP/s in bf16 and 67 in float64."""
    found = costs("--recovery", "none", "--calibration-tokens", "102400")
    forward = 100 * flops.flops_per_sample(WIDE, 1024, causal=True, lm_head=False)
    grams = 32 * 102400 * 2 * 14336**2 * 36 / 64
    elimination = 32 * 1.4 * 14336**3
    by_hand = forward / (0.4 * 989e12) + grams / (0.8 * 67e12) + elimination / (0.4 * 67e12)
    assert seconds(found["scoring"]) == pytest.approx(by_hand)
    weights = 2 * flops.count_weights(WIDE).num_parameters
    assert found["scoring"].device_bytes > weights + 31 * 8 * 14336**2
    assert "recovery" not in found


def test_no_gram_matrices_no_elimination() -> None:
    few = costs("--scorer", "activation", "--compensate", "false", "--recovery", "none")
    assert seconds(few["scoring"]) < seconds(costs("--recovery", "none")["scoring"]) / 3
    assert few["pruning"].seconds == 0


def test_more_devices_divide_scoring_and_not_compensation() -> None:
    one, eight = (costs("--dry-run-gpus", f"{number}xH100-80GB") for number in (1, 8))
    assert seconds(eight["scoring"]) == pytest.approx(seconds(one["scoring"]) / 8)
    assert eight["pruning"] == one["pruning"]


def test_float64_at_a_64th_is_left_for_float32() -> None:
    """Elimination of an RTX 4090 is in float32, its Gram matrices are not."""
    gpu = GPUS["RTX-4090"]
    assert gpu.solving(14336) == pytest.approx(0.4 * 82.6e12)
    assert gpu.solving(1536) == pytest.approx(0.4 * 1.29e12)
    assert GPUS["A100-80GB"].solving(14336) == pytest.approx(0.4 * 19.5e12)


def test_streaming_needs_a_layer_and_then_the_smaller_model() -> None:
    whole, streamed = costs("--recovery", "none"), costs("--recovery", "none", "--stream")
    assert streamed["scoring"].device_bytes < whole["scoring"].device_bytes / 5
    assert streamed["loading"].device_bytes == 0
    smaller = flops.resized(WIDE, 9344, 32)
    weights = 2 * flops.count_weights(smaller).num_parameters
    assert streamed["pruning"].device_bytes == streamed["saving"].device_bytes == weights


def test_what_stays_on_disk_needs_a_layer_to_the_end() -> None:
    """An embedding is larger than a layer here; saving has two copies of a tensor on the host."""
    found = costs("--stream", "--recovery", "none", "--eval-tasks", "none")
    embedding, weights = 2 * 128256 * 4096, 2 * flops.count_weights(WIDE).num_parameters
    assert found["saving"].device_bytes == embedding
    assert found["saving"].host_bytes < 2 * embedding + 2**30
    assert found["pruning"].device_bytes == found["scoring"].device_bytes
    for measured in (["--recovery", "cpt", "--eval-tasks", "none"], ["--recovery", "none"]):
        whole = costs("--stream", *measured)["saving"]
        assert whole.device_bytes > 0.6 * weights


def test_what_stays_divided_is_never_whole_on_a_device() -> None:
    """On 64 devices a whole 8B model is more than what one has of its training."""
    many = ["--dry-run-gpus", "64xH100-80GB", "--stream", "--deepspeed", "zero3"]
    divided, whole = costs(*many, "--eval-tasks", "none"), costs(*many)
    weights = 2 * flops.count_weights(flops.resized(WIDE, 9344, 32)).num_parameters
    assert whole["recovery"].device_bytes > weights > 2 * divided["recovery"].device_bytes
    assert divided["saving"].host_bytes < weights < whole["saving"].host_bytes
    # distillation has its teacher, and its method does not take a divided model
    distilled = costs(*many, "--eval-tasks", "none", "--recovery", "distill")
    assert distilled["recovery"].device_bytes > weights


def test_rounds_add_up_and_the_largest_counts() -> None:
    one, two = costs(), costs(rounds=2)
    assert seconds(two["scoring"]) > 1.5 * seconds(one["scoring"])
    assert two["scoring"].device_bytes == one["scoring"].device_bytes
    assert two["loading"] == one["loading"]


def test_the_line_names_the_longest_stage_and_what_shortens_it() -> None:
    found = list(costs("--recovery-tokens", "1000000000").values())
    line = stage_costs.line(found, GPUS["H100-80GB"])
    assert "The longest is recovery (--recovery-tokens makes it shorter)" in line
    unknown = stage_costs.line(list(costs().values()), GPUS["H100-80GB"])
    assert "recovery unknown time in" in unknown


@pytest.mark.parametrize("file", sorted(RESULTS.glob("planner_*.json")), ids=lambda file: file.stem)
def test_measured_runs_are_within_a_quarter(file: Path) -> None:
    found: dict[str, Any] = json.loads(file.read_text())["stages"]["together"]
    for name in ("processor", "peak_gib"):
        assert found[f"estimated_{name}"] == pytest.approx(found[name], rel=0.25)

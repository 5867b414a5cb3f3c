"""What pruning layer by layer is said to need is what it was measured to need."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from ptl_fast.base import memory
from ptl_fast.run import pruning_memory
from ptl_fast.run.gpus import GPUS
from support.settings import settings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# of a process that has imported torch and transformers, as the measured one: a tiny model's peak
PROCESS_GIB = 0.46


def test_the_estimate_for_8b_is_near_what_was_measured() -> None:
    found = json.loads((RESULTS / "layer_by_layer_8b_cpu.json").read_text())
    original = LlamaConfig(**found["shape"], tie_word_embeddings=False)
    config = settings(calibration_tokens=found["tokens"])
    measured = found["measured"]["peak_resident_gib"] - PROCESS_GIB
    estimated = pruning_memory.streaming_bytes(original, config) / memory.GIB
    assert estimated == pytest.approx(measured, rel=0.15)
    assert f"about {estimated:.1f} GiB" in pruning_memory.line(original, config)


def test_depth_does_not_matter_and_hidden_states_do_up_to_a_limit() -> None:
    def needed(num_layers: int, tokens: int) -> int:
        original = LlamaConfig(num_hidden_layers=num_layers, tie_word_embeddings=False)
        return pruning_memory.streaming_bytes(original, settings(calibration_tokens=tokens))

    assert needed(80, 1000) == pytest.approx(needed(8, 1000), rel=1e-3)
    assert needed(8, 2000) - needed(8, 1000) == 2 * 1000 * 4096 * 2
    # then they are files
    assert needed(8, 10**6) == needed(8, 10**7) < needed(8, 1000)


def test_gram_matrices_that_do_not_fit_beside_the_model_take_more_passes() -> None:
    original = LlamaConfig(
        intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8, vocab_size=128_256
    )
    config = settings(keep=0.5)
    line = pruning_memory.grams_line(original, config, GPUS["H100-80GB"])
    assert "32 of 1.5 GiB, 32 at a time" in line
    assert ": 1 pass over" in line
    small = pruning_memory.grams_line(original, config, GPUS["RTX-4090"])
    assert "passes over --calibration-tokens to score, and again to compensate" in small
    none = settings(keep=0.5, scorer="activation", compensate=False)
    assert pruning_memory.grams_line(original, none, GPUS["H100-80GB"]) == ""

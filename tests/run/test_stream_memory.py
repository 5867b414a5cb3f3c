"""What pruning layer by layer is said to need is what it was measured to need."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from ptl_fast.run import stream_memory
from support.settings import settings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# of a process that has imported torch and transformers, as the measured one: a tiny model's peak
PROCESS_GIB = 0.46


def test_the_estimate_for_8b_is_near_what_was_measured() -> None:
    found = json.loads((RESULTS / "layer_by_layer_8b_cpu.json").read_text())
    original = LlamaConfig(**found["shape"], tie_word_embeddings=False)
    config = settings(calibration_tokens=found["tokens"])
    measured = found["measured"]["by_default_scorer"]["peak_resident_gib"] - PROCESS_GIB
    estimated = stream_memory.streaming_bytes(original, config) / stream_memory.GIB
    assert estimated == pytest.approx(measured, rel=0.15)
    assert f"about {estimated:.1f} GiB" in stream_memory.line(original, config)


def test_depth_does_not_matter_and_hidden_states_do_up_to_a_limit() -> None:
    def needed(num_layers: int, tokens: int) -> int:
        original = LlamaConfig(num_hidden_layers=num_layers, tie_word_embeddings=False)
        return stream_memory.streaming_bytes(original, settings(calibration_tokens=tokens))

    assert needed(80, 1000) == pytest.approx(needed(8, 1000), rel=1e-3)
    assert needed(8, 2000) - needed(8, 1000) == 2 * 1000 * 4096 * 2
    # then they are files
    assert needed(8, 10**6) == needed(8, 10**7) < needed(8, 1000)

"""Prefill of the bundled model's shape, compressed and dense, under pytest-benchmark: python -m
pytest benchmarks --benchmark-enable.
"""

from typing import Any

import pytest
import torch

from benchmarks.harness.models import random_model, resized
from benchmarks.inference.workloads import Workload, run
from ptl_fast.model import loading

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORKLOADS = [Workload("prefill", 1, 128, 1), Workload("prefill", 8, 256, 1)]


@pytest.mark.parametrize("workload", WORKLOADS, ids=["1x128", "8x256"])
@pytest.mark.parametrize("name", ["ours", "dense"])
def test_prefill(benchmark: Any, workload: Workload, name: str) -> None:
    """The contender "ours" is the model at half its FFN width."""
    benchmark.group = f"prefill ptl-demo {workload.batch_size}x{workload.prompt_length} {DEVICE}"
    benchmark.extra_info["contender"] = name
    dense = loading.load_config(loading.DEMO)
    config = dense if name == "dense" else resized(dense, dense.intermediate_size // 2, None)
    model = random_model(config, DEVICE, torch.float32)
    with torch.inference_mode():
        benchmark.pedantic(run, args=(model, workload), rounds=20, warmup_rounds=3)

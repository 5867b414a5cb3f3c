"""Results of small benchmarks that several test files read; each is measured once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import stopwatch
from benchmarks.harness.models import random_model, resized, shape_config
from benchmarks.inference import speedup
from benchmarks.inference import widths as widths_module
from support.benchmarks import comparison_results


@pytest.fixture(scope="session", autouse=True)
def small_flushes() -> Iterator[None]:
    """Read a megabyte before each timed call, since no test asks what a cold cache costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stopwatch.FLUSH_BYTES, "cpu", 1 << 20)
        yield


@pytest.fixture(scope="session")
def speed_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: a speedup of two saved models, and an alignment study, both tiny."""
    folder = tmp_path_factory.mktemp("results")
    dense = random_model(shape_config("tiny"), "cpu", torch.float32)
    dense.save_pretrained(folder / "dense")
    random_model(resized(dense.config, 96, 1), "cpu", torch.float32).save_pretrained(
        folder / "small"
    )
    models = ["--model", str(folder / "dense"), "--compressed", str(folder / "small")]
    sizes = ["--prefill", "2x16", "--decode", "2x8", "--new-tokens", "3", "--samples", "2"]
    speedup.main([*models, *sizes, "--device", "cpu", "--json", str(folder / "speedup_test.json")])
    sizes = [
        "--hidden",
        "32",
        "--centre",
        "512",
        "--reach",
        "256",
        "--num-tokens",
        "8",
        "--rounds",
        "2",
    ]
    widths_module.main([*sizes, "--device", "cpu", "--json", str(folder / "alignment_test.json")])
    return folder


@pytest.fixture
def results() -> dict[str, Any]:
    """Rows of a comparison of methods."""
    return comparison_results()

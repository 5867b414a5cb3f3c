"""The scoring pass and its peers run over the same tokens, after the statistics were checked."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scoring import bench_scoring
from benchmarks.scoring.bench_scoring import EagerHooks
from ptl_fast.model.families import find_family
from support.benchmarks import tiny_model


def test_results_have_a_ratio_to_every_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scoring_test.json"
    sizes = ["--num-tokens", "256", "--sequence-length", "64", "--batch", "2", "--samples", "2"]
    flags = ["--shape", "tiny", "--device", "cpu", *sizes, "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench_scoring", *flags])
    bench_scoring.main()
    result = json.loads(file.read_text())
    assert (result["model"], result["dtype"]) == ("tiny", "float32")
    assert result["num_tokens"] >= 256
    names = ("plain_forward", "packed_forward", "plain_decoder", "eager_hooks", "reference_rule")
    for name in names:
        low, high = result[f"vs_{name}_range"]
        assert 0 < low <= result[f"vs_{name}"] <= high


def test_wrong_statistics_end_the_program() -> None:
    model: Any = tiny_model()
    hooks = EagerHooks(model, find_family(model))
    hooks.square += torch.rand_like(hooks.square)
    hooks.change += torch.rand_like(hooks.change)
    ours: Any = type("Statistics", (), {})()
    ours.square_LI, ours.change_L3 = hooks.square.clone(), hooks.change.clone()
    bench_scoring.check(ours, hooks, torch.float32)
    ours.square_LI[0] *= 1.1
    with pytest.raises(SystemExit, match="wrong statistics: relative error"):
        bench_scoring.check(ours, hooks, torch.float32)

"""Every way of removing neurons leaves a model that runs at its new width."""

import importlib.util

import pytest
import torch

from benchmarks.compaction import removals
from support.benchmarks import tiny_model


@pytest.mark.parametrize("name", removals.REMOVALS)
def test_smaller_model_states_its_width_and_runs(name: str) -> None:
    if name.startswith("torch-pruning") and importlib.util.find_spec("torch_pruning") is None:
        pytest.skip("torch-pruning is not installed")
    smaller = removals.REMOVALS[name](tiny_model(), [list(range(200))] * 2)
    assert smaller.config.intermediate_size == 200
    for ffn in removals.feed_forwards_of(smaller):
        assert [linear.out_features for linear in ffn.inputs] == [200, 200]
        assert ffn.down.in_features == 200
    assert smaller(torch.ones(1, 3, dtype=torch.int64)).logits.isfinite().all()


def test_ways_that_are_left_out_say_why() -> None:
    assert removals.why_not_measured(removals.WITH_FILES, files=False) == "left out by --no-files"
    assert removals.why_not_measured("ours", files=False) is None

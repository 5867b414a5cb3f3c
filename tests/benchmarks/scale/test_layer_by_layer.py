"""The measurement of a model that does not fit in memory, rehearsed on a tiny one."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.scale import layer_by_layer
from benchmarks.scale.layer_by_layer import MEASURED, SHAPES, child, extrapolated, make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work of two children, the second after the first had stopped behind a layer; in this
    process and so without a limit.
    """
    folder = tmp_path_factory.mktemp("scale")
    make_checkpoint(SHAPES["tiny"], folder / "dense", shard_bytes=20_000)
    for layers in (1, 3):
        child(Namespace(folder=folder, tokens=128, layers=layers, memory_gib=0.0))
        if layers == 1:
            first = json.loads((folder / "pruned" / MEASURED).read_text())
            assert first["layers"].keys() == {"0"}
            assert first["outside"].keys() == {"embed"}
    return folder


def record(folder: Path) -> Any:
    return json.loads((folder / "pruned" / MEASURED).read_text())


def test_the_checkpoint_has_shards_of_the_shape_asked_for(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.intermediate_size == SHAPES["tiny"]["intermediate_size"]
    assert len(list((folder / "dense").glob("*.safetensors"))) > 2
    assert 0.018 < float(model.model.layers[1].mlp.up_proj.weight.detach().std()) < 0.022


def test_every_layer_has_the_seconds_of_the_process_that_pruned_it(folder: Path) -> None:
    found = record(folder)
    assert found["processes"] == 2
    assert found["layers"].keys() == {"0", "1", "2"}
    assert found["outside"].keys() == {"embed", "finish"}
    parts = {"load", "forward", "gram", "score", "compensate", "compact", "save"}
    for layer in found["layers"].values():
        assert layer.keys() == parts
        assert all(seconds["wall"] > 0 for seconds in layer.values())


def test_the_pruned_checkpoint_is_checked_and_runs(folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(folder / "dense")
    found = layer_by_layer.check(folder / "pruned", config, 3)
    assert found["width"] < SHAPES["tiny"]["intermediate_size"]
    assert found["logits"] == "finite, of 8 tokens"
    partly = layer_by_layer.check(folder / "pruned", config, 2)
    assert partly["parameters"] < found["parameters"]
    assert partly["logits"].startswith("not tried")
    shutil.copytree(folder / "pruned", tmp_path / "pruned")
    next((tmp_path / "pruned").glob("model-00001-*")).unlink()
    with pytest.raises(AssertionError):
        layer_by_layer.check(tmp_path / "pruned", config, 2)


def test_only_what_reads_tokens_grows_with_them() -> None:
    def layer(gram: float) -> Any:
        parts = {"forward": gram + 0.5, "gram": gram, "score": 5.0}
        return {part: {"wall": 99.0, "processor": each} for part, each in parts.items()}

    outside = {name: {"wall": 99.0, "processor": each} for name, each in (("embed", 0.5),)}
    measured = {"layers": {"0": layer(1.0), "1": layer(3.0)}, "outside": outside}
    found = extrapolated(measured, 4, 100, 1000)
    assert found == {"gram": 80.0, "statistics": 20.0, "score": 20.0, "embed": 5.0, "total": 125.0}

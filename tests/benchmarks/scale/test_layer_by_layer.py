"""The measurement of a model that does not fit in memory, rehearsed on a tiny one."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.scale import layer_by_layer
from benchmarks.scale.layer_by_layer import SHAPES, child, extrapolated, make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both children's work, in this process and so without a limit."""
    folder = tmp_path_factory.mktemp("scale")
    make_checkpoint(SHAPES["tiny"], folder / "dense", shard_bytes=20_000)
    for scorer, last in (("default", 1), ("activation", 3)):
        child(
            Namespace(folder=folder, tokens=128, layers_measured=last, child=scorer, memory_gib=0.0)
        )
    return folder


def test_the_checkpoint_has_shards_of_the_shape_asked_for(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.intermediate_size == SHAPES["tiny"]["intermediate_size"]
    assert len(list((folder / "dense").glob("*.safetensors"))) > 2
    assert 0.018 < float(model.model.layers[1].mlp.up_proj.weight.detach().std()) < 0.022


def test_all_layers_are_pruned_and_the_parts_of_the_first_measured(folder: Path) -> None:
    result = layer_by_layer.check(folder / "pruned", json_config(folder))
    assert result["width"] < SHAPES["tiny"]["intermediate_size"]
    first = json.loads((folder / "pruned" / "measured-default.json").read_text())
    assert len(first["layers"]) == 1
    parts = {"load", "statistics", "gram", "score", "compensate", "compact", "save"}
    assert first["layers"][0].keys() == parts
    assert all(seconds > 0 for seconds in first["layers"][0].values())
    second = json.loads((folder / "pruned" / "measured-activation.json").read_text())
    # the finished layer is run, and not scored again
    assert ["score" in each for each in second["layers"]] == [False, True, True]


def json_config(folder: Path) -> object:
    return Namespace(**json.loads((folder / "dense" / "config.json").read_text()))


def test_only_what_reads_tokens_grows_with_them() -> None:
    measured = {"layers": [{"gram": 1.0, "score": 5.0}, {"gram": 3.0, "score": 5.0}]}
    measured["outside"] = {"embed": 0.5}  # type: ignore[assignment]
    rest = {"layers": [{}] * 4, "outside": {"finish": 7.0}}
    found = extrapolated(measured, rest, 100, 1000)
    assert found == {"gram": 80.0, "score": 20.0, "embed": 5.0, "finish": 7.0, "total": 112.0}

"""Layers that go leave what they did to the down projection before them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptl_fast import compress
from support.models import make_model
from support.runs import RUN

# One round that drops the last two layers, with nothing trained.
DROP = {
    **RUN,
    "keep": 1.0,
    "drop_layers": 2,
    "layers_per_round": 2,
    "layer_scorer": "last",
    "recovery": "none",
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def test_dropped_layers_change_the_down_projection_before_them_and_nothing_else(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    folded = compress(**tiny_run, **DROP, output=tmp_path / "folded")
    plain = compress(**tiny_run, **DROP, compensate_layers=False, output=tmp_path / "plain")
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "folded")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"model.layers.2.mlp.down_proj.weight"}
    (block,) = folded["rounds"][0]["folded_layers"]
    assert (block["layers"], block["into"], block["reason"]) == ([3, 4], 2, None)
    assert 0 < block["made_up_for"] < 1
    assert json.loads((tmp_path / "folded/round-01/folded_layers.json").read_text()) == [block]
    line = "Round 1: layers 3 to 4 were folded into layer 2's down projection"
    assert line in (tmp_path / "folded/report.md").read_text()
    assert "folded_layers" not in plain["rounds"][0]
    assert not (tmp_path / "plain/round-01/folded_layers.json").exists()


def test_layers_of_a_model_that_normalises_the_ffns_output_go_uncompensated_and_that_is_said(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("gemma2").save_pretrained(tmp_path / "model")
    for file in Path(tiny_run["model"]).glob("tokenizer*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    settings = {**tiny_run, **DROP, "model": str(tmp_path / "model")}
    compress(**settings, output=tmp_path / "folded")
    said = (
        "Round 1: layers 3 to 4 were not compensated: the model does not add the FFN's output to"
        " the residual stream as it is."
    )
    assert said in capsys.readouterr().out
    compress(**settings, compensate_layers=False, output=tmp_path / "plain")
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "folded")
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_later_round_folds_the_model_as_it_is_then(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Two rounds of one layer end near, but not at, what one round of the two ends at; neurons that
    went before make another model again.
    """
    runs = {
        "at-once": {},
        "in-turn": {"layers_per_round": 1},
        "neurons-first": {"keep": 0.5, "rounds": 1},
    }
    for name, changes in runs.items():
        compress(**tiny_run, **{**DROP, **changes}, output=tmp_path / name)
    name = "model.layers.2.mlp.down_proj.weight"
    at_once, in_turn, smaller = (weights(tmp_path / run)[name] for run in runs)
    assert not torch.equal(at_once, in_turn)
    assert smaller.shape[1] == at_once.shape[1] // 2
    records = json.loads((tmp_path / "in-turn/report.json").read_text())["rounds"]
    assert [record["folded_layers"][0]["into"] for record in records] == [3, 2]

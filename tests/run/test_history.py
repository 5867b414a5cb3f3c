"""Neurons and layers keep the original's numbers, whatever moved in between."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from ptl_fast import compress
from ptl_fast.model import families
from ptl_fast.run import history
from support.runs import RUN

# neurons, then layers, without training, so that weights tell who a neuron is
BOTH = {**RUN, "recovery": "none", "rounds": 2, "compensate": False, "keep_rounds": 9}
BOTH = {**BOTH, "drop_layers": 2, "layers_per_round": 1, "compensate_layers": False}


@pytest.fixture(scope="module")
def run(tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("history") / "run"
    compress(**tiny_run, **BOTH, output=output)
    return output


def gate_rows(folder: Path) -> list[torch.Tensor]:
    """The first projection's weight of every layer's FFN: a row a neuron."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    ffns = families.feed_forwards(model, families.find_family(model))
    return [ffn.inputs[0].weight.detach() for ffn in ffns.values()]


def test_every_round_is_in_the_originals_numbers(run: Path, tiny_run: dict[str, str]) -> None:
    original, rounds = gate_rows(Path(tiny_run["model"])), history.read(run)
    assert [each.number for each in rounds] == [1, 2, 3, 4]
    for before, after in itertools.pairwise(rounds):
        rows = gate_rows(run / f"round-{before.number:02d}" / "model")
        assert len(rows) == len(after.layers)
        for row, layer in enumerate(after.layers):
            torch.testing.assert_close(rows[row], original[layer][after.neurons_LI[row]])
    assert rounds[0].layers == [0, 1, 2, 3, 4]
    assert len(rounds[2].dropped) == len(rounds[3].dropped) == 1


def test_a_neuron_is_where_it_says(run: Path) -> None:
    later = history.read(run)[1]
    row, layer = 2, later.layers[2]
    neuron = int(later.neurons_LI[row, 5])
    assert later.place(layer, neuron) == (row, 5)
    gone = set(range(48)) - set(later.neurons_LI[row].tolist())
    assert later.place(layer, gone.pop()) is None
    assert history.read(run)[3].place(history.read(run)[2].dropped[0], 0) is None


def test_the_cut_is_between_what_went_and_what_stayed(run: Path) -> None:
    first = history.read(run)[0]
    assert first.scores_LI is not None
    assert first.plan.kept_neurons is not None
    for row, kept in enumerate(first.plan.kept_neurons):
        line = history.cut(first, row)
        assert line is not None
        assert int((first.scores_LI[row] >= line).sum()) == len(kept)
    assert history.cut(history.read(run)[2], 0) is None


def test_what_a_damaged_plan_leaves_is_told(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "round-02" / "plan.json").write_text("{}")
    (tmp_path / "run" / "round-01" / "statistics.safetensors").unlink()
    (first,) = history.read(tmp_path / "run")
    assert first.scores_LI is None
    assert first.plan == history.read(run)[0].plan


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        history.read(tmp_path)


def test_a_report_does_without_a_history_that_is_lost_or_of_experts(
    run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    plan = copy / "round-01" / "plan.json"
    content = json.loads(plan.read_text())
    plan.write_text("{")
    assert history.read_if_possible(copy) == []
    for listed in copy.rglob("checksums.list"):
        listed.unlink()
    plan.write_text(json.dumps({**content, "kept_neurons": content["kept_neurons"] * 2}))
    with pytest.raises(ValueError, match="pruned experts"):
        history.read(copy)

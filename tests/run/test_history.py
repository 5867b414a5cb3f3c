"""Neurons and layers keep the original's numbers, whatever moved in between."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from ptl_fast import compress
from ptl_fast.model import families
from ptl_fast.run import history, inspect
from support.mixtures import make_mixture
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
    with pytest.raises(ValueError, match="does not say of which layers"):
        history.read(copy)


MIXTURE = {**RUN, "recovery": "none", "rounds": 1, "compensate": False, "keep_rounds": 9}
MIXTURE = {**MIXTURE, "keep_experts": 0.5, "drop_layers": 1, "compensate_layers": False}


@pytest.mark.parametrize("order", ["neurons-then-layers", "layers-then-neurons"])
def test_every_expert_is_in_the_originals_numbers(
    order: str, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Experts, neurons and a layer go; the first is dense, others have a shared expert."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = make_mixture("deepseek_v3", 8, num_hidden_layers=4)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_run["model"]).save_pretrained(tmp_path / "model")
    run, given = tmp_path / "run", {**tiny_run, "model": str(tmp_path / "model")}
    compress(**{**given, **MIXTURE, "order": order, "layers": "2", "drop_layers": 0}, output=run)
    rounds = history.read(run)
    assert rounds[0].plan.kind == "experts"
    for number, each in enumerate(rounds, 1):
        saved = AutoModelForCausalLM.from_pretrained(run / f"round-{number:02d}" / "model")
        left = [layer for layer in each.layers if layer not in each.dropped]
        for place, layer in enumerate(left):
            if layer not in each.experts:
                continue
            kept = each.kept_experts(layer)
            gate = saved.model.layers[place].mlp.gate.weight
            torch.testing.assert_close(gate, model.model.layers[layer].mlp.gate.weight[kept])
    for before, after in itertools.pairwise(rounds):
        rows = gate_rows(run / f"round-{before.number:02d}" / "model")
        original = dict(zip(rounds[0].rows or [], gate_rows(tmp_path / "model"), strict=True))
        assert after.rows is not None
        assert len(rows) == len(after.rows) == len(after.neurons_LI)
        for row, owner, neurons_I in zip(rows, after.rows, after.neurons_LI, strict=True):
            torch.testing.assert_close(row, original[owner][neurons_I])
    assert "Which experts went" in (run / "report.html").read_text()
    inspected(run, rounds)


def inspected(run: Path, rounds: list[history.RoundHistory]) -> None:
    """What is told of a layer, of experts and of their neurons is what the plans say."""
    first, last = rounds[0], rounds[-1]
    staying = first.kept_experts(1)
    for expert in range(8):
        end = inspect.expert_lines(rounds, 1, expert)[-1]
        assert ("still there" if expert in staying else "went in round 1") in end
        there = last.place(1, 0, expert) is not None
        if last.plan.kept_neurons is not None and there:
            row, column = last.place(1, 0, expert) or (0, 0)
            there = column in last.plan.kept_neurons[row]
        assert ("still there" in inspect.neuron_lines(rounds, 1, 0, expert)[-1]) == there
    gone = ", ".join(str(each) for each in range(8) if each not in staying)
    assert gone in inspect.mixture_text(rounds, 1)
    assert "went with its layer" in inspect.expert_lines(rounds, 2, first.kept_experts(2)[0])[-1]
    assert "not pruned" in inspect.layer_text(rounds, 0)
    assert inspect.main([str(run), "--layer", "1", "--neuron", "0"]) == 2

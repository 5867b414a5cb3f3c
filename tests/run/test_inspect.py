"""What became of a neuron is told in the original's numbers, round by round."""

from pathlib import Path

import pytest
import torch

from ptl_fast import compress
from ptl_fast.run import history, inspect
from support.runs import RUN

BOTH = {**RUN, "recovery": "none", "rounds": 2, "drop_layers": 2, "layers_per_round": 1}


@pytest.fixture(scope="module")
def run(tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of neurons, then two that drop a layer each."""
    output = tmp_path_factory.mktemp("inspect") / "run"
    compress(**tiny_run, **BOTH, output=output)
    return output


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert inspect.main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def test_every_neuron_of_a_layer_goes_or_stays_as_the_plans_say(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = history.read(run)
    dropped = {rounds[2].dropped[0], rounds[3].dropped[0]}
    layer = next(each for each in range(5) if each not in dropped)
    last = rounds[-1]
    staying = last.neurons_LI[last.layers.index(layer)].tolist()
    for neuron in range(48):
        text = told(capsys, run, "--layer", layer, "--neuron", neuron)
        end = "is still there after round 4." if neuron in staying else "went in round"
        assert end in text.splitlines()[-1]


def test_score_rank_and_cut_are_those_of_the_round(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = history.read(run)[0]
    assert first.scores_LI is not None
    lowest = int(first.scores_LI[1].argmin())
    text = told(capsys, run, "--layer", 1, "--neuron", lowest)
    assert f"went: score {float(first.scores_LI[1, lowest]):.6g} by reconstruction, 0 of" in text
    assert f"the cut was at {history.cut(first, 1):.6g}, {first.plan.width} stayed" in text
    assert text.splitlines()[-1] == f"Neuron {lowest} of layer 1 went in round 1."


def test_a_neuron_that_moved_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = history.read(run)[1]
    moved = (second.neurons_LI[0] != torch.arange(second.neurons_LI.shape[1])).nonzero()
    column = int(moved[0])
    neuron = int(second.neurons_LI[0, column])
    assert second.scores_LI is not None
    text = told(capsys, run, "--layer", second.layers[0], "--neuron", neuron).splitlines()[1]
    assert f"score {float(second.scores_LI[0, column]):.6g} by" in text
    assert f"It was number {column} then" in text


def test_a_dropped_layer_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    third = history.read(run)[2]
    (layer,) = third.dropped
    neuron = int(third.neurons_LI[third.layers.index(layer), 0])
    text = told(capsys, run, "--layer", layer, "--neuron", neuron)
    assert text.splitlines()[-1].endswith("went with its layer in round 3.")
    table = told(capsys, run, "--layer", layer).splitlines()
    assert len(table) == 2 + 3  # nothing is left for the fourth round
    assert "the layer went, score" in table[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", "5"], "layers 0 to 4"),
        (["--layer", "0", "--neuron", "48"], "neurons 0 to 47"),
        (["--layer", "-1"], "layers 0 to 4"),
    ],
)
def test_what_the_original_lacks_is_said(
    arguments: list[str], expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(run), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(tmp_path), "--layer", "0"]) == 2
    assert "holds no run" in capsys.readouterr().err

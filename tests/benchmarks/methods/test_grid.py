"""The points of a grid, and its cells."""

import json
from pathlib import Path

import pytest

from benchmarks.methods import compare, contenders, studies
from benchmarks.methods import grid as grid_module
from benchmarks.methods.setup import Setup

COMMITTED = Path(__file__).parents[3] / "benchmarks" / "results"


def test_unknown_settings_stop_the_grid_and_are_all_named(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = {
        "PTL": contenders.ptl,
        "first": lambda setup, keep: {"keep": keep, "no_such_setting": 1},
        "second": lambda setup, keep: {"keep": keep, "scorer": "no-such-scorer"},
    }
    monkeypatch.setattr(studies, "METHODS", methods)
    assert compare.main(["--studies", "methods", "--output", str(tmp_path / "runs")]) == 2
    errors = capsys.readouterr().err
    assert "methods, first" in errors
    assert "no_such_setting" in errors
    assert "methods, second: unknown --scorer no-such-scorer" in errors
    assert "PTL" not in errors
    assert len(grid_module.make_points(["methods"], setup, ["PTL"])) == len(setup.sizes)


def test_studies_share_the_cells_whose_settings_are_equal(setup: Setup) -> None:
    points = grid_module.make_points(
        ["methods", "rounds", "steps", "budget", "recovery"], setup, ["PTL", "Prune-Once"]
    )
    cells, places = compare.make_cells(points, setup, 2)
    of_ptl = [
        place["cells"]
        for place in places
        if place["method"] == "PTL" and place["keep"] == 0.125 and place["study"] != "steps"
    ]
    assert (
        len(of_ptl) == 5
    )  # methods, rounds, recovery, and two budgets, of which one is the others' 100,000 tokens
    assert len({tuple(names) for names in of_ptl}) == 2
    one_round = [
        place
        for place in places
        if place["keep"] == 0.125 and (place["x"] == 1 or place["method"] == "Prune-Once")
    ]
    assert len({tuple(place["cells"]) for place in one_round}) == 2
    assert {cell.settings["seed"] for cell in cells.values()} == {0, 1}
    assert [cell.settings["seed"] for cell in cells.values()] == sorted(
        cell.settings["seed"] for cell in cells.values()
    )


@pytest.mark.parametrize(
    "file", sorted(COMMITTED.glob("compare_*.json")), ids=lambda file: file.stem
)
def test_committed_rows_are_found_by_their_settings(file: Path) -> None:
    content = json.loads(file.read_text())
    for name, row in content["cells"].items():
        assert grid_module.cell_name(row["settings"], content["setup"]["base"]) == name


def test_all_cells_of_a_budget_get_the_same_tokens_and_learning_rate(setup: Setup) -> None:
    points = grid_module.make_points(
        ["budget"], setup, ["PTL", "Prune-Once", "ShortGPT", "CHOP", "random neurons"]
    )
    for name in ("learning_rate", "data", "eval_tasks", "sequence_length", "global_batch"):
        assert len({str(point.settings[name]) for point in points}) == 1
    assert all(point.settings["recovery_tokens"] == point.x for point in points)

"""benchmarks.methods.compare: equal sizes, statistics by hand, tables and figures from rows alone,
cells that fail or are finished.
"""

import csv
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import cells as cells_module
from benchmarks.methods import compare, data, figures
from benchmarks.methods import grid as grid_module
from benchmarks.methods import tables as tables_module
from benchmarks.methods.grid import Setup
from benchmarks.methods.tables import Spread, verdict

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"

# The bundled model by hand: embedding, a layer's attention and norms, FFN parameters a neuron, the
# last norm.
EMBEDDING, ATTENTION, NEURON, NORM = 306 * 128, 2 * 128 * 128 + 2 * 128 * 64 + 2 * 128, 3 * 128, 128


def demo_parameters(num_layers: int, width: int) -> int:
    return EMBEDDING + num_layers * (ATTENTION + width * NEURON) + NORM


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(
        base=grid_module.demo_base("test"),
        general=tmp_path / "general.txt",
        budgets=(50_000, 100_000),
    )


def test_parameters_are_the_hand_computed_ones(setup: Setup) -> None:
    assert grid_module.num_parameters({**setup.base, "keep": 0.5}) == demo_parameters(4, 384)
    assert grid_module.planned(setup.base)[0]["num_parameters"] == demo_parameters(4, 768)


@pytest.mark.parametrize(
    ("keep", "width", "num_left"),
    [
        pytest.param(0.5, 384, 2, id="58.4%-between-51.4%-and-75.7%"),
        pytest.param(0.25, 192, 1, id="37.5%-between-27.1%-and-51.4%"),
        pytest.param(0.125, 96, 1, id="27.0%-beside-27.1%"),
    ],
)
def test_layer_methods_drop_the_number_of_layers_nearest_in_parameters(
    setup: Setup, keep: float, width: int, num_left: int
) -> None:
    target = demo_parameters(4, width)
    assert min((1, 2, 3), key=lambda left: abs(demo_parameters(left, 768) - target)) == num_left
    settings = grid_module.fewer_layers(setup, keep, "last")
    assert settings["drop_layers"] == settings["layers_per_round"] == 4 - num_left
    assert grid_module.num_parameters({**setup.base, **settings}) == demo_parameters(num_left, 768)


def test_nearest_looks_on_both_sides_and_at_the_ends() -> None:
    sizes = {1: 10, 2: 20, 3: 40}
    for target, expected in ((0, 1), (14, 1), (16, 2), (29, 2), (31, 3), (99, 3)):
        assert grid_module.nearest([1, 2, 3], sizes.__getitem__, target) == expected


def test_slice_has_the_fraction_nearest_in_parameters(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned_sizes(**settings: Any) -> list[dict[str, int]]:
        if "slice_hidden" not in settings:
            return [{"num_parameters": 1000}, {"num_parameters": 600}]
        return [
            {"num_parameters": 1000},
            {"num_parameters": int(100 + 1000 * settings["slice_hidden"])},
        ]

    grid_module._planned.cache_clear()
    monkeypatch.setattr(grid_module, "planned_sizes", planned_sizes)
    assert grid_module.sliced(setup, 0.5)["slice_hidden"] == 128 / 256
    grid_module._planned.cache_clear()


def test_steps_keep_the_ratio_of_the_last_share_to_the_first(setup: Setup) -> None:
    """4 rounds that grow fourfold end at 64 times the first."""
    assert grid_module.same_ends(setup, 4) == grid_module.same_ends(setup, 1) == {}
    assert grid_module.same_ends(setup, 2) == {"recovery_growth": 64.0}
    assert grid_module.same_ends(setup, 8)["recovery_growth"] ** 7 == pytest.approx(64, rel=1e-3)


def test_unknown_settings_stop_the_grid_and_are_all_named(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = {
        "PTL": grid_module.ptl,
        "first": lambda setup, keep: {"keep": keep, "no_such_setting": 1},
        "second": lambda setup, keep: {"keep": keep, "scorer": "no-such-scorer"},
    }
    monkeypatch.setattr(grid_module, "METHODS", methods)
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


def test_problems_without_a_skill_are_disjoint_and_in_their_parts() -> None:
    from ptl_fast.demo.problems import part_of

    texts = {name: make() for name, make in data.unseen_problems("validation").items()}
    problems = {
        name: [json.loads(line)["question"] for line in text.splitlines()]
        for name, text in texts.items()
    }
    for name, multiplies, part in (
        ("recovery", False, "training"),
        ("unseen-training", True, "training"),
        ("seen", False, "validation"),
        ("unseen", True, "validation"),
    ):
        assert all(
            ("multiply" in question) == multiplies and part_of(question) == part
            for question in problems[name]
        ), name
    assert len(problems["seen"]) == len(problems["unseen"]) == data.NUM_PROBLEMS


def test_general_text_is_a_thousand_paragraphs_of_english() -> None:
    """The authors' rule looks at a thousand samples."""
    text = data.general_text()
    assert len(text.split("\n\n")) >= 1000
    assert text == data.general_text()
    assert text.count(" the ") > 1000


def test_spread_is_mean_and_range() -> None:
    spread = Spread((90.0, 96.0, 93.0))
    assert (spread.mean, spread.lowest, spread.highest, spread.range) == (93.0, 90.0, 96.0, 6.0)
    assert str(spread) == "93.0 (90.0 to 96.0)"


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((90.0, 92.0), (86.0, 89.0), "+3.5: yes"),  # 91 - 87.5 = 3.5 > 3
        ((90.0, 92.0), (86.0, 90.0), "+3.0: no"),  # 91 - 88 = 3 < 4
        ((90.0, 92.0), (87.0, 89.0), "+3.0: yes"),  # 3 > 2
        ((90.0, 93.0), (87.0, 90.0), "+3.0: no"),  # equal to the range is not more
        ((80.0, 81.0), (90.0, 91.0), "-10.0: no, behind by more than the spread"),
        ((80.0,), (70.0, 71.0), "+9.5: one seed has no spread"),
    ],
)
def test_verdict_compares_means_with_the_larger_range(
    ours: tuple, theirs: tuple, expected: str
) -> None:
    assert verdict(Spread(ours), Spread(theirs)) == expected


def test_verdict_of_a_loss_is_the_other_way_round() -> None:
    assert verdict(Spread((1.0, 1.5)), Spread((3.0, 3.5)), lower_is_better=True) == "+2.0: yes"


def fake_cell(
    seed: int, accuracy: float, num_parameters: int = 600, **settings: Any
) -> dict[str, Any]:
    sizes = {
        "num_parameters": num_parameters,
        "num_layers": 4,
        "width": 400,
        "flops_per_token": 1000,
    }
    evaluation = {"sums": {"exact_match": accuracy, "other": 0.1}}
    rounds = [
        {
            **sizes,
            "round": number,
            "kind": "neurons",
            "recovery_tokens": 500 * number,
            "seconds": {"calibrate": 1.0, "recover": 10.0 * number},
            "eval_pruned": {"sums": {"exact_match": accuracy / 2, "other": 0.1}},
            "eval": evaluation,
        }
        for number in (1, 2)
    ]
    dense = {
        "num_parameters": 1000,
        "num_layers": 4,
        "width": 800,
        "flops_per_token": 2000,
        "eval": {"sums": {"exact_match": 1.0}},
    }
    return {
        "settings": {"seed": seed, **settings},
        "status": "finished",
        "commits": ["abc"],
        "dense": dense,
        "rounds": rounds,
        "final": {**sizes, "eval": evaluation},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """PTL at 90 and 92, another method at 80 and 84 with a third seed that failed, each in every
    study that has a figure.
    """
    cells = {
        "ptl-0": fake_cell(0, 0.90),
        "ptl-1": fake_cell(1, 0.92),
        "other-0": fake_cell(0, 0.80, num_parameters=700),
        "other-1": fake_cell(1, 0.84, num_parameters=700),
        "other-2": {"settings": {"seed": 2}, "status": "failed", "error": "error: it broke"},
    }
    ptl, other = ["ptl-0", "ptl-1"], ["other-0", "other-1", "other-2"]
    points = [{"study": "rounds", "method": "PTL", "keep": 0.5, "x": None, "cells": ptl}]
    for study, xs in (
        ("methods", [None]),
        ("budget", [1000, 2000]),
        ("unseen", [1000, 2000]),
        ("steps", [1, 2]),
    ):
        points += [
            {"study": study, "method": method, "keep": 0.5, "x": x, "cells": names}
            for x in xs
            for method, names in (("PTL", ptl), ("other", other))
        ]
    setup = {
        "model": "ptl-demo",
        "data": "ptl-demo",
        "eval_tasks": ["sums"],
        "seeds": [0, 1, 2],
        "base": {},
    }
    return {
        "environment": {"device": "a CPU", "torch": "2.13", "jobs": 2},
        "setup": setup,
        "points": points,
        "cells": cells,
    }


TABLE = """\
| size | method | parameters | layers x width | FLOPs/token | speedup by FLOPs | rounds | recovery tokens | recovery, s | sums \
| PTL ahead on sums: by more than the spread? |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|
| dense |  | 100.0% |  | 100.0% | 1.00x |  |  |  | 100.0 |  |
| keep 0.5 | PTL | 60.0% | 4 x 400 | 50.0% | 2.00x | 2 | 1,500 | 30 | 91.0 (90.0 to 92.0) |  |
| keep 0.5 | other | 70.0% | 4 x 400 | 50.0% | 2.00x | 2 | 1,500 | 30 | 82.0 (80.0 to 84.0), 2 of 3 seeds | +9.0: yes |

Mean over the seeds, with the lowest and the highest in brackets. *By more than the spread*: the difference of the means is larger \
than the larger of the two ranges (highest minus lowest over the seeds).

Not the same size, but as near as whole layers or slices come: other at keep 0.5: 70.0% where PTL has 60.0%.

Missing:

- other at keep 0.5: failed (error: it broke), seed 2"""


def test_table_is_exact(results: dict[str, Any]) -> None:
    assert tables_module.study_table(results, "methods") == TABLE


def test_render_needs_only_the_rows(
    results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, tables, document = (
        tmp_path / "rows.json",
        tmp_path / "tables",
        tmp_path / "docs" / "paper.md",
    )
    rows.write_text(compare.to_json(results))
    assert json.loads(rows.read_text()) == results
    document.parent.mkdir()
    document.write_text(
        "# FLOPs\n\nkept\n\n<!-- begin: table1 -->\nold\n<!-- end: table1 -->\n\nalso kept\n"
    )
    arguments = ["--render", "--json", str(rows), "--tables", str(tables), "--docs", str(document)]
    assert compare.main(arguments) == 1  # a cell failed
    assert "other-2: error: it broke" in capsys.readouterr().err
    for name in ("figure3", "figure4", "budget", "unseen"):
        picture = (tables / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000
    assert TABLE in (tables / "table1.md").read_text()
    text = document.read_text()
    assert text.startswith("# FLOPs\n\nkept\n\n<!-- begin: table1 -->\n| size |")
    assert "old" not in text
    assert "also kept" in text
    assert text.count("<!-- begin: budget -->") == 1
    assert "![Accuracy against recovery tokens](../tables/budget.png)" in text
    compare.main(arguments)
    assert document.read_text() == text


def test_csv_holds_every_value(results: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(tables_module.to_csv(results, "table1"))))
    assert [(row["method"], float(row["mean"]), row["values"]) for row in rows] == [
        ("PTL", 91.0, "90 92"),
        ("other", 82.0, "80 84"),
    ]
    rows = list(csv.DictReader(io.StringIO(tables_module.to_csv(results, "figure3"))))
    assert [(row["round"], row["stage"], float(row["mean"])) for row in rows[:2]] == [
        ("1", "pruned", 45.5),
        ("1", "recovered", 91.0),
    ]


def test_figures_show_every_line(results: dict[str, Any]) -> None:
    figure = figures.budget_figure(results, "budget")
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["PTL", "other"]
    line = figure.axes[0].containers[0][0]
    assert list(line.get_xdata()) == [1000, 2000]
    assert list(line.get_ydata()) == [91.0, 91.0]


def test_without_matplotlib_the_error_says_what_to_install(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        figures.rounds_figure(results)


TINY = {"recovery_tokens": 4000, "eval_tasks": "nll", "eval_limit": 4, "calibration_tokens": 1024}


def test_plan_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """100,000 tokens: 9 s to start, 9 evaluations of 3.4 s for 4 rounds, 0.19 ms a token."""
    output = tmp_path / "runs"
    arguments = [
        "--plan",
        "--studies",
        "rounds",
        "--sizes",
        "0.5",
        "--seeds",
        "2",
        "--jobs",
        "1",
        "--output",
        str(output),
    ]
    assert compare.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("2 cells, 0 of them finished; 1 at a time. The rest takes about 2 min")
    assert "59 s  seed-1_" in text
    assert [path.name for path in output.iterdir()] == ["data"]


def grid(tmp_path: Path, **settings: Any) -> list[str]:
    config = tmp_path / "settings.yaml"
    config.write_text(json.dumps({**TINY, **settings}))
    flags = [
        "--studies",
        "methods",
        "--methods",
        "Prune-Once",
        "--sizes",
        "0.5",
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    return [
        *flags,
        "--config",
        str(config),
        "--output",
        str(tmp_path / "runs"),
        "--json",
        str(tmp_path / "rows.json"),
    ]


def test_finished_cell_is_not_run_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = grid(tmp_path)
    assert compare.main(arguments) == 0
    first = json.loads((tmp_path / "rows.json").read_text())
    (row,) = first["cells"].values()
    assert row["status"] == cells_module.FINISHED
    assert row["final"]["num_parameters"] == demo_parameters(4, 384)
    assert row["settings"]["rounds"] == 1
    assert first["environment"]["torch"]
    assert "1 cells, 0 of them finished" in capsys.readouterr().out
    assert (
        "| keep 0.5 | Prune-Once | 58.4% | 4 x 384 |"
        in (tmp_path / "runs" / "tables" / "table1.md").read_text()
    )

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(cells_module, "run_cell", refuse)
    assert compare.main(arguments) == 0
    assert "1 cells, 1 of them finished" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.json").read_text())["cells"] == first["cells"]
    shutil.rmtree(tmp_path / "runs")
    assert compare.main(arguments) == 0, "the file of rows is enough"
    assert "1 cells, 1 of them finished" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.json").read_text()) == first


def crash(settings: dict[str, Any], folder: Path, log: Path, num_threads: int) -> None:
    log.write_text("")
    os.kill(os.getpid(), signal.SIGSEGV)


def test_failed_cell_is_reported_and_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = grid(tmp_path, data="nowhere.jsonl")
    assert compare.main(arguments) == 1
    output = capsys.readouterr()
    assert "error: no file nowhere.jsonl" in output.err
    assert "No cell of this study is finished." in output.out
    (row,) = json.loads((tmp_path / "rows.json").read_text())["cells"].values()
    assert row["status"] == cells_module.FAILED

    monkeypatch.setattr(cells_module, "compress_cell", crash)
    assert compare.main(arguments) == 1
    assert "exit code -11" in capsys.readouterr().err

"""Files of results appear whole, and errors in what the user named take one line."""

import json
from pathlib import Path

import pytest

from benchmarks.harness import results


def test_json_is_replaced_as_a_whole_in_a_folder_that_is_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.json"
    results.write_json(file, {"rows": [1]})
    results.write_json(file, {"rows": [1, 2]})
    assert json.loads(file.read_text()) == {"rows": [1, 2]}
    assert file.read_text().endswith("\n")
    assert [each.name for each in file.parent.iterdir()] == ["rows.json"]


def test_error_ends_the_program_with_one_line() -> None:
    with pytest.raises(SystemExit) as ended, results.errors_in_one_line():
        raise ValueError("wrong\n  twice")
    assert ended.value.code == "error: wrong twice"


def test_same_figure_gives_the_same_file(tmp_path: Path) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    files = [tmp_path / f"{number}.png" for number in (1, 2)]
    for file in files:
        figure = figure_module.Figure()
        figure.subplots().plot([1, 2])
        results.write_figure(file, figure, {"Software": None})
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(b"\x89PNG")

"""Runs stand side by side, round by round, and what makes them unlike is said."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ptl_fast.run import compare

DENSE = {"num_parameters": 1000, "flops_per_token": 2000, "eval": {"nll": {"nll": 1.0}}}


def write(folder: Path, losses: list[float], dense: dict[str, Any] = DENSE, **config: Any) -> Path:
    """A run's folder with a report alone."""
    folder.mkdir(parents=True)
    rounds = [
        {
            **DENSE,
            "round": number,
            "num_parameters": 1000 - 200 * number,
            "seconds": {"recover": 10.0},
            "eval": {"nll": {"nll": loss}},
        }
        for number, loss in enumerate(losses, start=1)
    ]
    report = {"dense": dense, "rounds": rounds, "config": {"output": str(folder), **config}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_every_round_of_every_run_has_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one", [1.25, 1.5], keep=0.5, seed=0)
    two = write(tmp_path / "two", [1.125], keep=0.8, seed=0)
    assert compare.main([str(one), str(two)]) == 0
    text = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")][1:-1] for line in text.splitlines()]
    assert ["one", "dense", "1k", "100.0%", "2k", "", "1"] in cells
    assert ["one", "2", "600", "60.0%", "2k", "20", "1.5"] in cells
    assert ["two", "1", "800", "80.0%", "2k", "10", "1.125"] in cells
    assert ["keep", "0.5", "0.8"] in cells
    assert "seed" not in text
    assert "dense models differ" not in text


def test_a_table_that_is_too_wide_leaves_columns_out(tmp_path: Path) -> None:
    reports = compare.read([write(tmp_path / "one", [1.25])])
    whole, narrow = (compare.to_text(reports, width) for width in (None, 60))
    assert "of dense" in whole
    assert "FLOPs/token" in whole
    assert "FLOPs/token" not in narrow
    assert "loss on held-out answers" in narrow


def test_files_have_the_same(tmp_path: Path) -> None:
    runs = [str(write(tmp_path / name, [1.25], keep=0.5)) for name in ("<i>", "b")]
    page, text = tmp_path / "out" / "c.html", tmp_path / "out" / "c.md"
    assert compare.main([*runs, "--html", str(page), "--markdown", str(text)]) == 0
    root = ElementTree.fromstring(page.read_text().removeprefix("<!DOCTYPE html>"))
    assert not list(root.iter("i"))
    # a line of each run: its dense model and its round
    assert len(list(root.iter("circle"))) == 4
    assert text.read_text().startswith("# Runs compared\n\n|")


def test_runs_that_began_elsewhere_are_not_mixed_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**DENSE, "eval": {"nll": {"nll": 2.0}, "gsm8k": {"pass@1": 0.5}}}
    runs = [write(tmp_path / "a", [1.25]), write(tmp_path / "b", [2.25], other)]
    assert compare.main([str(run) for run in runs]) == 0
    text = capsys.readouterr().out
    assert "The dense models differ in loss on held-out answers, gsm8k: answers right" in text
    compare.to_html(compare.read(runs))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write(tmp_path / each / "run", [1.25]) for each in "ab"]
    assert list(compare.read(runs)) == [str(run) for run in runs]


def test_a_setting_that_is_newer_than_a_run_has_what_the_run_did(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", [1.25]), write(tmp_path / "b", [1.25], seed=0)]
    assert compare.settings_text(compare.read(runs)) == ""


def test_no_report_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path)]) == 2
    assert "has no report.json" in capsys.readouterr().err

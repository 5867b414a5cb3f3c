"""Cells that finish, fail, and go on."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import cells as cells_module
from benchmarks.methods import compare
from benchmarks.methods.summaries import FAILED, FINISHED
from support.demo_sizes import demo_parameters

TINY = {"recovery_tokens": 4000, "eval_tasks": "nll", "eval_limit": 4, "calibration_tokens": 1024}


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
    assert row["status"] == FINISHED
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
    assert row["status"] == FAILED

    monkeypatch.setattr(cells_module, "compress_cell", crash)
    assert compare.main(arguments) == 1
    assert "exit code -11" in capsys.readouterr().err

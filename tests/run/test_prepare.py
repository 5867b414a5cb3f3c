"""Before a run begins: its folder's name, and what may not lie in it."""

import shutil
from pathlib import Path

import pytest

from ptl_fast.run import prepare
from support.files import write_data
from support.models import DEMO_MODEL
from support.runs import main
from support.settings import settings


@pytest.mark.parametrize("where", ["", "final"])
def test_a_model_inside_its_own_run_is_refused_and_stays(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / where
    shutil.copytree(DEMO_MODEL, folder)
    (tmp_path / "run" / "state.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    flags = [
        "--model",
        str(folder),
        "--data",
        str(write_data(tmp_path / "data.jsonl")),
        "--output",
        str(tmp_path / "run"),
    ]
    flags += ["--sequence-length", "128"]
    before[tmp_path / "data.jsonl"] = (tmp_path / "data.jsonl").read_bytes()
    assert main([*flags, "--overwrite"]) == 2
    assert "lies in this run's own folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_runs_are_named_after_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "mine" / "final")
    names = {}
    shutil.copytree(DEMO_MODEL, tmp_path / "other")
    for model, place in (
        ("mine/final", tmp_path),
        ("other", tmp_path),
        (".", tmp_path / "other"),
        ("final", tmp_path / "mine"),
    ):
        monkeypatch.chdir(place)
        names[model] = str(prepare.output_folder(settings(model=model)))
    assert names == {
        "mine/final": "runs/mine-final",
        "other": "runs/other",
        ".": "runs/other",
        "final": "runs/mine-final",
    }

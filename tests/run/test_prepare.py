"""Before a run begins: its folder's name, and what may not lie in it."""

import json
import shutil
from pathlib import Path

import pytest

from ptl_fast.run import prepare
from support.files import write_data
from support.models import DEMO_MODEL
from support.runs import DEMO, as_flags, main
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


def test_a_run_that_began_under_former_defaults_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its state.json names the template that was the default, and lacks what could not be set."""
    monkeypatch.chdir(tmp_path)
    flags = as_flags(
        {**DEMO, "preset": None, "model": "ptl-demo", "data": write_data(Path("data.jsonl"))}
    )
    assert main([*flags, "--template", "lines", "--compensate-layers", "false"]) == 0
    (state,) = Path("runs").glob("*/state.json")
    begun = json.loads(state.read_text())
    del begun["config"]["compensate_layers"]
    state.write_text(json.dumps(begun))
    before = (state.parent / "final" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "goes on as it began: --template lines, --compensate-layers False" in said
    assert (state.parent / "final" / "model.safetensors").read_bytes() == before
    # asked for otherwise, it is another run
    assert main([*flags, "--template", "paper"]) == 2
    assert "its --template is lines, now it is paper" in capsys.readouterr().err

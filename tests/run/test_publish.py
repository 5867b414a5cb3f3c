"""The result is the last round's model, with a card and a report that say how to load it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ptl_fast import compress
from support.damage import DAMAGES
from support.runs import RUN


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"rounds": 1, "recovery": "none"}, id="ordinary"),
        pytest.param(
            {"rounds": 1, "recovery": "none", "keep": 1.0, "slice_hidden": 0.75}, id="sliced"
        ),
    ],
)
def test_final_is_the_last_round_and_says_how_to_load_it(
    options: dict, tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny_run, **RUN, **options, "output": tmp_path / "run"}
    report = compress(**settings)
    final, last = tmp_path / "run" / "final", tmp_path / "run" / "round-01" / "model"
    tensors = load_file(final / "model.safetensors")
    assert tensors.keys() == load_file(last / "model.safetensors").keys()
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["final"].items() <= report["rounds"][-1].items()
    told = capsys.readouterr().out
    is_sliced = "slice_hidden" in options
    for text in (told, (tmp_path / "run" / "report.md").read_text()):
        assert f'from_pretrained("{final}")' in text
        assert ("import ptl_fast.slicegpt" in text) is is_sliced
    assert ("ptl_fast.slicegpt" in (final / "README.md").read_text()) is is_sliced


def test_a_finished_result_is_not_written_again(tiny_run: dict[str, str], tmp_path: Path) -> None:
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery": "none", "output": tmp_path / "run"}
    report = compress(**settings)
    weights = tmp_path / "run" / "final" / "model.safetensors"
    before = weights.stat().st_ino, weights.stat().st_mtime_ns
    assert compress(**settings)["final"] == report["final"]
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == before


ONE_ROUND = {**RUN, "rounds": 1, "recovery": "none"}


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the card, which has seconds."""
    files = (file for file in folder.iterdir() if file.name != "README.md")
    return {file.name: file.read_bytes() for file in files}


def test_the_result_shares_no_storage_with_what_a_run_reads(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    compress(**tiny_run, **ONE_ROUND, output=tmp_path / "run")
    for file in (tmp_path / "run" / "final").iterdir():
        assert file.stat().st_nlink == 1, file


def test_a_damaged_result_is_put_aside_and_made_again(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny_run, **ONE_ROUND, "output": tmp_path / "run"}
    compress(**settings)
    final = tmp_path / "run" / "final"
    whole = contents(final)
    for number, damage in enumerate(DAMAGES.values(), start=1):
        damage(final / "model.safetensors")
        compress(**settings)
        assert contents(final) == whole
        assert (tmp_path / "run" / f"final.changed-{number}" / "config.json").exists()
        assert (
            "final/model.safetensors does not hold what this run wrote" in capsys.readouterr().out
        )
    shutil.rmtree(final)
    compress(**settings)
    assert contents(final) == whole
    (final / "README.md").write_text("a card of my own")
    compress(**settings)
    assert (final / "README.md").read_text() == "a card of my own"


def test_a_result_whose_round_is_damaged_too_is_computed_again(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {**tiny_run, **ONE_ROUND, "output": tmp_path / "run"}
    compress(**settings)
    run = tmp_path / "run"
    whole = contents(run / "final")
    for folder in ("final", "round-01/model"):
        DAMAGES["flip"](run / folder / "model.safetensors")
    compress(**settings)
    assert contents(run / "final") == whole


def test_a_round_that_shows_no_result_is_no_harm(tiny_run: dict[str, str], tmp_path: Path) -> None:
    """Weights that nobody needs any more may go."""
    settings = {**tiny_run, **ONE_ROUND, "output": tmp_path / "run"}
    report = compress(**settings)
    shutil.rmtree(tmp_path / "run" / "round-01" / "model")
    assert compress(**settings)["final"] == report["final"]

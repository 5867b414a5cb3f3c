"""The result is the last round's model, with a card and a report that say how to load it."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ptl_fast import compress
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

"""The examples run, and end with what they promise."""

import json
import runpy
from pathlib import Path

import pytest

from support.runs import DEMO

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_loop_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(EXAMPLES / "own_loop.py"))
    names["main"].__globals__["STEPS"] = 2
    names["main"]()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round")]
    assert [line.split(",")[0] for line in lines] == [
        "round 1: width 640",
        "round 2: width 512",
        "round 3: width 384",
    ]
    assert "826,752 parameters" in lines[-1]


def test_a_model_is_pruned_by_the_kernels_alone_and_loads_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = runpy.run_path(str(EXAMPLES / "prune_my_model.py"))
    names["main"](str(names["DEMO"]), str(tmp_path / "pruned"))
    said = capsys.readouterr().out
    assert "width 384, 826,752 parameters" in said
    assert said.endswith("its logits differ by at most 0\n")


@pytest.mark.parametrize("name", ["own_scorer", "own_recovery"])
def test_methods_of_ones_own_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    names["main"](str(tmp_path / "run"), **{**DEMO, "rounds": 2, "recovery_tokens": 3000})
    said = capsys.readouterr().out
    assert "826,752 parameters" in said or "round 2: width 384" in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    if name == "own_recovery":
        changed = [each["eval"] != each["eval_pruned"] for each in report["rounds"]]
        assert changed == [True, True], "it has trained"
    else:
        assert report["config"]["scorer"] == "mean-size"

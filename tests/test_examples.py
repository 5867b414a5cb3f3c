"""The examples run, and end with what they promise."""

import runpy
from pathlib import Path

import pytest

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

"""A run says first what it is going to do, and how long this machine takes for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.run import loop, this_machine
from ptl_fast.run.gpus import GPUS
from support.runs import RUN, as_flags, kill_at, main


def test_a_run_begins_with_its_plan_and_goes_on_with_what_is_left(
    tiny_run: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = replace(GPUS["H200"], tflops=1e-4, name="CPU, 1 thread")
    monkeypatch.setattr(this_machine, "cpu", lambda: slow)
    flags = as_flags({**tiny_run, **RUN, "rounds": 2, "output": tmp_path / "run"})
    kill_at("recovered", loop, 2, flags)
    first = capsys.readouterr().out
    assert "Plan: 2 rounds, from " in first
    assert "on this machine (CPU, 1 thread), by its FLOPs; scoring" in first
    assert main(flags) == 0
    assert "Plan: 1 round more, from " in capsys.readouterr().out
    assert main(flags) == 0
    assert "Plan:" not in capsys.readouterr().out, "nothing is left"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"recovery": "none"}, "Nothing is trained; scoring and evaluation take the time."),
        (
            {"recovery": "none", "eval_tasks": "none"},
            "Nothing is trained; scoring takes the time.",
        ),
    ],
)
def test_without_training_there_is_nothing_to_estimate(
    settings: dict[str, Any],
    told: str,
    tiny_run: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**tiny_run, **RUN, "rounds": 1, "output": tmp_path / "run", **settings}
    assert main(as_flags(given)) == 0
    printed = capsys.readouterr()
    assert told in printed.out
    # what there is nothing to do for is no stage
    stages = printed.out + printed.err
    assert "round 1 of 1: scoring" in stages
    assert "recovering" not in stages
    assert ("evaluating" in stages) == ("eval_tasks" not in settings)

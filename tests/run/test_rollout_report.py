"""What a run says about trainings on its own answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from ptl_fast import compress
from ptl_fast.run import rollout_report
from support.runs import DEMO


def test_reward_that_never_comes_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response of two tokens marks no answer. And the same command continues a run that died
    after its last round.
    """
    settings = {
        **DEMO,
        "rounds": 1,
        "recovery": "none",
        "final_recovery": "grpo",
        "grpo_steps": 1,
        "grpo_prompts": 2,
    }
    settings |= {"grpo_response_tokens": 2, "output": tmp_path / "run"}
    content = compress(**settings)
    line = (
        "Round 2: accuracy and format were 0 for each of 16 rollouts, so there was nothing to"
        " learn from; 100% of the responses"
    )
    assert line in capsys.readouterr().out
    details = content["rounds"][1]["grpo"]
    assert (details["reward"], details["truncated"], details["steps"]) == ([0.0], [1.0], 1)
    assert (
        json.loads((tmp_path / "run" / "report.json").read_text())["rounds"][1]["grpo"] == details
    )
    assert line in (tmp_path / "run" / "report.md").read_text()


def test_line_for_one_reward() -> None:
    details: dict[str, Any] = {
        "always_zero": ["accuracy"],
        "rollouts": 1024,
        "reward": [0.1, 0.0],
        "truncated": [0.1, 0.2],
    }
    line = rollout_report.unrewarded_line(3, details)
    assert line.startswith(
        "Round 3: accuracy was 0 for each of 1024 rollouts; try more continual pre-training"
    )
    assert "smaller step (more --rounds)" in line
    line = rollout_report.unrewarded_line(
        3, {**details, "reward": [0.0, 0.0], "truncated": [0.9, 0.7]}
    )
    assert (
        "so there was nothing to learn from; 80% of the responses were cut off: try a higher"
        " --grpo-response-tokens"
    ) in line


def judged(first: float, last: float, steps: int = 6) -> dict[str, Any]:
    """A record of so many steps whose last fifth differs from the others."""
    few = -(-steps // 5)

    def curve(one: float, two: float) -> list[float]:
        return [one] * (steps - few) + [two] * few

    return {
        "steps": steps,
        "rollouts": 8 * steps,
        "divergence": curve(first, last),
        "finished": curve(0.0, 1.0),
        "repeating": curve(0.5, 0.25),
        "response_tokens": curve(8.0, 31.0),
    }


def test_divergence_is_told_from_its_beginning_to_its_end() -> None:
    records: list[dict[str, Any]] = [
        {"round": 1, "recovery_steps": 3, "opd": judged(0.4, 0.2)},
        {"round": 2, "recovery_steps": 3, "extra_recovery": [{"opd": judged(0.3, 0.1, 5)}]},
        {"round": 3, "recovery_steps": 3},
    ]
    (section,) = rollout_report.sections(records)
    title, *rows = [line for line in section.splitlines() if line and "---" not in line]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert title == "## On-policy distillation"
    assert cells[0] == rollout_report.JUDGED
    assert [row[:3] for row in cells[1:]] == [["1", "6", "48"], ["2, extension 1", "5", "40"]]
    shown = [[float(cell) for cell in row[3:]] for row in cells[1:]]
    assert shown == [[0.4, 0.2, 1, 0.25, 31], [0.3, 0.1, 1, 0.25, 31]]
    assert [rollout_report.num_steps(record) for record in records] == [6, 0, 0]
    assert rollout_report.sections(records[2:]) == []

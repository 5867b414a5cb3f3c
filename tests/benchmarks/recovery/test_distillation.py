"""Rows of distillation beside continual pre-training: equal settings, each measured once."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recovery import distillation


def test_both_ways_of_recovery_differ_in_their_recovery_alone() -> None:
    rows = distillation.settings_by_row("test")
    assert len(rows) == 8
    for name, settings in rows.items():
        if name.startswith("cpt"):
            other = rows[name.replace("cpt", "distill")]
            differing = {key for key in other if settings.get(key) != other[key]}
            assert differing == set(distillation.METHODS["distill"])


def test_rows_are_measured_once_and_again_when_their_settings_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def measure_run(settings: dict[str, Any], task: str) -> dict[str, Any]:
        asked.append(settings)
        return {"accuracy": 50.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(distillation, "measure_run", measure_run)
    file = tmp_path / "rows.json"
    distillation.measure("test", "sums", [0, 1], file, ["cpt, keep 0.25, 50,000"])
    assert [settings["seed"] for settings in asked] == [0, 1]
    distillation.measure("test", "sums", [0, 1], file, ["cpt, keep 0.25, 50,000"])
    assert len(asked) == 2
    rows = json.loads(file.read_text())
    rows["cpt, keep 0.25, 50,000 tokens, seed 1"]["settings"]["keep"] = 0.3
    file.write_text(json.dumps(rows))
    distillation.measure("test", "sums", [0, 1], file, ["cpt, keep 0.25, 50,000"])
    assert len(asked) == 3

"""Rows of the study: sizes and accuracies from a run's report; rows that are there are not made
again.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experts import study

SIZE = {"num_parameters": 100, "flops_per_token": 50, "num_experts": 8, "width": 192}
REPORT = {
    "dense": {**SIZE, "eval": {study.TASK: {"exact_match": 98.0}}},
    "final": {**SIZE, "num_parameters": 60, "flops_per_token": 45, "num_experts": 4},
    "rounds": [
        {
            "eval_pruned": {study.TASK: {"exact_match": 40.0}},
            "eval": {study.TASK: {"exact_match": 90.0}},
            "recovery_tokens": 1000,
            "seconds": {"prune": 1.2, "recover": 3.0},
        }
    ],
}


def test_a_row_has_what_the_report_says() -> None:
    assert study.row("half", REPORT) == {
        "name": "half",
        "num_experts": 4,
        "width": 192,
        "parameters": 0.6,
        "flops_per_token": 0.9,
        "dense": 98.0,
        "pruned": [40.0],
        "recovered": [90.0],
        "recovery_tokens": [1000],
        "seconds": 4,
    }


def test_rows_that_are_there_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training.json").write_text('{"steps": 3}')
    (tmp_path / "row-0" / "final").mkdir(parents=True)
    (tmp_path / "row-0" / "report.json").write_text(json.dumps(REPORT))
    given = list[dict[str, Any]]()
    monkeypatch.setattr(study, "compress", lambda **settings: given.append(settings) or REPORT)
    file = tmp_path / "rows.json"
    study.main(["--output", str(tmp_path), "--json", str(file), "--limit", "5"])
    results = json.loads(file.read_text())
    assert [each["name"] for each in results["rows"]] == list(study.ROWS)
    assert results["training"] == {"steps": 3}
    assert len(given) == len(study.ROWS) - 1
    assert [each.get("expert_scorer", "reap") for each in given] == [
        "reap",
        "frequency",
        "random",
        "reap",
        "output",
    ]
    assert {each["eval_limit"] for each in given} == {5}

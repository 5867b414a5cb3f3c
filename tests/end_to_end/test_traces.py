"""Own traces in whole runs of the bundled model: killed and continued, and on two ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.demo.problems import generate
from support.files import write_rows
from support.processes import kill_when
from support.ranks import run_ranks
from support.runs import DEMO, as_flags, main, without_seconds

STAGES = [
    "traces/00-00000.jsonl",
    "traces/00-00001.jsonl",
    "traces/summary.json",
    "round-02/traces/00-00000.jsonl",
    "round-02/traces/summary.json",
    "round-02/plan.json",
    "round-02/recovery/checkpoint-*/complete",
    "round-02/record.json",
]
COMPARED = [
    "traces/00-00000.jsonl",
    "traces/00-00001.jsonl",
    "round-02/traces/00-00000.jsonl",
    "round-01/plan.json",
    "round-02/statistics.safetensors",
    "final/model.safetensors",
]


@pytest.fixture
def traced(tmp_path: Path) -> dict[str, Any]:
    """Two rounds; sampled so that some answers are wrong, and those are not kept."""
    return {
        **DEMO,
        "preset": None,
        "model": "ptl-demo",
        "data": write_rows(tmp_path / "data.jsonl", *generate(900, 0, "training")),
        "traces": True,
        "traces_temperature": 2.0,
        "traces_keep": "right",
        "traces_every_round": True,
        # the answers' tokens alone: the model's, the renewed ones too
        "calibrate_on": "answers",
        "rounds": 2,
        "keep": 0.5,
        "width_multiple": 32,
        "recovery_split": "equal",
        "recovery_tokens": 5000,
        "global_batch": 8,
        "micro_batch": 8,
        "gradient_checkpointing": False,
        "checkpoint_minutes": 0.0,
    }


def test_killed_while_it_answers_a_run_ends_bit_identical(
    traced: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = as_flags(traced)
    assert main([*flags, "--output", "undisturbed"]) == 0
    again = [*flags, "--output", "run"]
    kills = [stage for stage in STAGES if kill_when(f"run/{stage}", again, tmp_path)]
    assert kills == STAGES
    assert main(again) == 0
    runs = [tmp_path / "undisturbed", tmp_path / "run"]
    for name in COMPARED:
        first, second = [(run / name).read_bytes() for run in runs]
        assert first == second, name
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert without_seconds(reports[0]) == without_seconds(reports[1])
    for first, second in zip(*(report["traces"] for report in reports), strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    original, renewed = reports[0]["traces"]
    assert 0 < original["kept"] == original["right"] < original["asked"]
    assert 0 < renewed["kept"] == renewed["right"] < renewed["asked"]
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_two_ranks_answer_as_one_does(
    traced: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes every second file, and both train on all of them."""
    monkeypatch.chdir(tmp_path)
    scoring = {**traced, "recovery": "none", "rounds": 1, "traces_every_round": False}
    assert main(as_flags({**scoring, "output": "one"})) == 0
    told = run_ranks({**scoring, "output": "two"}, tmp_path)
    assert told.count("Own traces: the model answers") == 1, "only one rank reports"
    one, two = tmp_path / "one", tmp_path / "two"
    files = sorted(file.name for file in (one / "traces").glob("*.jsonl"))
    assert len(files) > 1
    for name in files:
        assert (one / "traces" / name).read_bytes() == (two / "traces" / name).read_bytes()
    plans = [json.loads((run / "round-01" / "plan.json").read_text()) for run in (one, two)]
    assert plans[0]["kept_neurons"] == plans[1]["kept_neurons"]
    summaries = [json.loads((run / "traces" / "summary.json").read_text()) for run in (one, two)]
    for name in ("asked", "right", "kept"):
        assert summaries[0][name] == summaries[1][name]

"""Neurons chosen during recovery beside those of a separate pass."""

from pathlib import Path

from benchmarks.scoring.bench_score_during_recovery import COLUMNS, compare_rounds, table_row


def test_every_round_after_the_first_has_its_overlap(tmp_path: Path) -> None:
    settings = {
        "seed": 0,
        "keep": 0.5,
        "rounds": 2,
        "recovery_tokens": 2500,
        "recovery_split": "equal",
        "calibration_tokens": 512,
        "eval_tasks": ["nll"],
        "eval_limit": 2,
    }
    (row,) = compare_rounds(settings, tmp_path / "run")
    assert row["round"] == 2
    assert 0 < row["lowest_overlap"] <= row["overlap"] <= 1
    assert row["num_tokens_during_recovery"] > 0
    assert len(table_row(row)) == len(COLUMNS)

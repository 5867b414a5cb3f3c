"""The tables of docs/benchmarks.md are what the raw results give."""

import json
from pathlib import Path

import pytest

from benchmarks.documents import speed_table


def test_committed_tables_are_what_the_raw_results_give() -> None:
    speed_table.main(["--check"])


def test_tables_show_measured_rows_and_keep_what_is_not(
    speed_results: Path, tmp_path: Path
) -> None:
    document = tmp_path / "benchmarks.md"
    marks = (
        "prefill",
        "decode",
        "paper",
        "resources",
        "throughput",
        "stages",
        "targets",
        "alignment",
        "devices",
    )
    document.write_text("".join(f"<!-- table:{mark} -->\nstale\n<!-- end -->\n" for mark in marks))
    flags = ["--document", str(document), "--results", str(speed_results)]
    with pytest.raises(SystemExit):
        speed_table.main([*flags, "--check"])
    speed_table.main(flags)
    text = document.read_text()
    row = json.loads((speed_results / "speedup_test.json").read_text())["rows"][0]
    assert (
        "| dense | 256 x 2 -> 96 x 1 | float32 | transformers | 2 | 16 | 1 |"
        f" {row['dense']['time_ms']:.1f} |"
    ) in text
    assert (
        f"| {row['device_speedup']:.2f} | {row['predicted_speedup']:.2f} |"
        f" {row['of_predicted']:.0%} |"
    ) in text
    assert "dense, size 256 x 2 -> 96 x 1, float32, vllm, batch 2, prompt 16, new tokens 1" in text
    assert "GPU, llama3-8b / gemma2-9b / qwen2.5-7b" in text
    assert "stale" not in text
    assert "speedup_test.json" in text

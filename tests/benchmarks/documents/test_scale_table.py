"""The tables of docs/scale.md are what the planner and the raw results give."""

from pathlib import Path

import pytest

from benchmarks.documents import scale_table


def test_committed_tables_are_what_the_planner_and_the_results_give(tmp_path: Path) -> None:
    scale_table.main(["--check"])
    stale = tmp_path / "scale.md"
    stale.write_text(scale_table.DOCUMENT.read_text().replace("Llama 3.1 405B", "Llama"))
    with pytest.raises(SystemExit):
        scale_table.main(["--check", "--document", str(stale)])


def test_what_does_not_fit_has_no_hours_and_says_what_would() -> None:
    _, *rows = scale_table.sizes_table()
    assert len(rows) == len(scale_table.MODELS) * len(scale_table.DEVICES)
    for row in rows:
        for part, hours in ((row[2], row[5]), (row[6], row[8])):
            assert (hours == "") == part.startswith("does not fit: ")
    assert {row[2] for row in rows if row[0] == "Llama 3.1 8B"} == {"in memory", "`--stream`"}

"""Figures come from the raw results."""

from pathlib import Path

import pytest

from benchmarks.documents import plot


def test_figures_come_from_the_results_and_are_the_same_each_time(
    speed_results: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = plot.draw(speed_results, tmp_path / "one")
    assert [file.name for file in files] == ["speedup_test.svg", "alignment_test.svg"]
    plot.draw(speed_results, tmp_path / "two")
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()

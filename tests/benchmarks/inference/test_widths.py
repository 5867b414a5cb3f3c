"""Excess of widths that do not suit the device, and the rule that follows from it."""

import json
from pathlib import Path

import pytest

from benchmarks.inference import widths as widths_module
from ptl_fast.pruning.width_multiple import excess, largest_multiple


def test_excess_and_rule_by_hand() -> None:
    """Time grows with the width; widths that are not multiples of 64 take a tenth longer, others of
    32 a fiftieth.
    """
    widths = range(512, 1025, 8)
    slower = {64: 1.0, 128: 1.0, 256: 1.0, 32: 1.015}
    times = {
        width: width * slower.get(largest_multiple(width, widths_module.MULTIPLES), 1.1)
        for width in widths
    }
    above = excess(times, 256)
    rows = [
        {"product": "up", "num_tokens": 8, "width": width, "excess": above[width]}
        for width in widths
    ]
    lines = {line["multiple"]: line for line in widths_module.summary(rows)}
    assert above[1024] == pytest.approx(0)
    assert lines[8]["median_excess"] == pytest.approx(0.1)
    assert lines[32]["median_excess"] == pytest.approx(0.015)
    assert {multiple: line["num_widths"] for multiple, line in lines.items()} == {
        8: 32,
        16: 16,
        32: 8,
        64: 4,
        128: 2,
        256: 3,
    }
    assert widths_module.chosen(list(lines.values())) == 32
    lines[128]["median_excess"] = 0.03  # 64 must not be chosen below a multiple that is slow
    assert widths_module.chosen(list(lines.values())) == 256


def test_alignment_results_hold_every_width(speed_results: Path) -> None:
    results = json.loads((speed_results / "alignment_test.json").read_text())
    assert [row["width"] for row in results["rows"] if row["product"] == "down"] == list(
        range(256, 769, 8)
    )
    assert all(row["time_ms"] > 0 for row in results["rows"])
    assert results["rule"] in widths_module.MULTIPLES

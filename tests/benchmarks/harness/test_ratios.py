"""Benchmarks are compared by the ratios inside each run."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import ratios
from benchmarks.harness.ratios import Ratio


def content(scale: float = 1.0, **medians: float) -> dict[str, Any]:
    """A file with one group; quartiles lie 2% to each side, and every time is ``scale`` times as
    long.
    """
    return {
        "machine_info": {
            "node": "someone's",
            "python_version": "3.11",
            "cpu": {"brand_raw": "Some CPU"},
        },
        "commit_info": {"id": "abc"},
        "benchmarks": [
            {
                "group": "op",
                "name": f"test_speed[{name}]",
                "extra_info": {"contender": name},
                "stats": {
                    "q1": 0.98 * scale * value,
                    "median": scale * value,
                    "q3": 1.02 * scale * value,
                    "rounds": 20,
                    "data": [],
                },
            }
            for name, value in medians.items()
        ],
    }


def test_ratio_is_the_entry_over_ours_with_the_range_of_the_quartiles() -> None:
    found = ratios.ratios(content(ours=2.0, eager=3.0))
    assert found == {
        ("op", "eager"): Ratio(
            1.5, pytest.approx(1.5 * 0.98 / 1.02), pytest.approx(1.5 * 1.02 / 0.98)
        )
    }


def test_a_slower_machine_moves_nothing_and_a_slower_op_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / name for name in ("before", "machine", "op", "noise", "faster")}
    files["before"].write_text(json.dumps(content(ours=2.0, eager=3.0, gone=1.0)))
    files["machine"].write_text(json.dumps(content(5.0, ours=2.0, eager=3.0, new=1.0)))
    files["op"].write_text(json.dumps(content(ours=2.6, eager=3.0)))
    files["noise"].write_text(json.dumps(content(ours=2.1, eager=3.0)))
    files["faster"].write_text(json.dumps(content(ours=1.0, eager=3.0)))
    kept = tmp_path / "kept"
    ratios.main([str(files["before"]), "--write", str(kept)])
    printed = {}
    for name in ("machine", "op", "noise", "faster"):
        ratios.main([str(files[name]), "--baseline", str(kept)])
        printed[name] = capsys.readouterr().out
    assert "| op | eager | 1.50 (1.44 to 1.56) | 1.50 (1.44 to 1.56) |  |" in printed["machine"]
    assert "| op | gone | 0.50 (0.48 to 0.52) |  | only in the baseline |" in printed["machine"]
    assert "| op | new |  | 0.50 (0.48 to 0.52) | new |" in printed["machine"]
    assert "0 of 3 ratios moved" in printed["machine"]
    assert "WORSE for ours" in printed["op"]
    assert "1 of 2 ratios moved" in printed["op"]
    assert "0 of 2 ratios moved" in printed["noise"]
    assert "BETTER for ours" in printed["faster"]
    assert "someone's" not in kept.read_text()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (content(eager=1.0), "no entry 'ours', only eager; run all of the group"),
        (
            {"benchmarks": [{"name": "x", "group": "g", "extra_info": {}, "stats": {}}]},
            "x has no extra_info",
        ),
    ],
)
def test_a_file_without_references_is_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratios.ratios(broken)


def test_committed_baseline_has_every_group_of_today() -> None:
    from benchmarks.kernels.cases import OPS

    groups = {group for group, _ in ratios.ratios(json.loads(ratios.BASELINE.read_text()))}
    missing = {
        op
        for op in OPS
        if op != "dual_gemm" and not any(group.startswith(f"{op} ") for group in groups)
    }
    assert not missing
    assert any(group.startswith("scoring pass") for group in groups)
    assert any(group.startswith("prefill") for group in groups)

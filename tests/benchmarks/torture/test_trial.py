"""An outcome is judged by what a run told and published."""

import json
from pathlib import Path

import pytest

from benchmarks.torture.child import Ended
from benchmarks.torture.trial import fault_of, result, shuffled


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (Ended(0, "", 1), ""),
        (Ended(2, "warning\nerror: the data has no rows", 1), ""),
        (Ended(2, "error: \n", 1), "exit code 2"),
        (Ended(2, "", 1), "exit code 2"),
        (Ended(1, "Traceback (most recent call last):\nValueError: no", 1), "a traceback"),
        (Ended(-6, "error: the process was aborted", 1), "exit code -6"),
        (Ended(-9, "", 1, timed_out=True), "it did not end"),
    ],
)
def test_what_is_wrong_with_an_end(ended: Ended, fault: str) -> None:
    assert fault_of(ended).startswith(fault)
    assert bool(fault_of(ended)) == bool(fault)


def test_a_result_is_its_files_and_its_report_without_times(tmp_path: Path) -> None:
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    report = tmp_path / "run" / "report.json"
    assert result(tmp_path) == ""
    found = []
    for weights, seconds in (("a", 1), ("a", 2), ("b", 1)):
        (final / "model").write_text(weights)
        report.write_text(json.dumps({"final": {}, "rounds": [{"nll": 1, "seconds": seconds}]}))
        found.append(result(tmp_path))
    assert found[0] == found[1] != found[2]


def test_an_order_is_the_seeds() -> None:
    assert shuffled([1, 2, 3, 4, 5], 1) == shuffled([1, 2, 3, 4, 5], 1)
    assert sorted(shuffled([3, 1, 2], 2)) == [1, 2, 3]

"""Rows are kept from one command to the next, and what is lost ends it with an error."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.torture import run
from benchmarks.torture.parts import LINE, PARTS, Bench, Case, Part
from benchmarks.torture.trial import Inputs


def test_a_part_replaces_its_own_row_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = ["fine", f"{LINE}: error: why"]

    def cases(bench: Bench) -> Iterator[Case]:
        yield from (Case(str(number), each) for number, each in enumerate(outcomes))

    part = Part("a fault", "somehow", cases, 1.0, frozenset({"fine", LINE}))
    monkeypatch.setattr(run, "PARTS", {"one": part, "two": part})
    monkeypatch.setattr(Inputs, "make", lambda folder: Inputs(folder))
    file = tmp_path / "rows.json"
    run.main(["--json", str(file)])
    outcomes.append("another result")
    with pytest.raises(SystemExit, match="another result"):
        run.main(["--json", str(file), "--only", "two"])
    rows = json.loads(file.read_text())["rows"]
    assert rows["one"]["outcomes"] == {"fine": 1, LINE: 1}
    assert rows["one"]["lost"] == []
    assert rows["two"]["lost"] == [["2", "another result"]]
    run.main(["--json", str(file), "--only", "two", "--seconds", "0"])
    row = json.loads(file.read_text())["rows"]["two"]
    assert (row["num_cases"], row["whole"]) == (1, False)


def test_parts_share_the_time_of_two_lanes() -> None:
    given = argparse.Namespace(only=list(PARTS), seconds=5400.0)
    times = run._times(given)
    assert sum(times.values()) == pytest.approx(2 * 5400)
    assert max(times.values()) < 5400
    given.only = ["flags"]
    assert run._times(given) == {"flags": 5400.0}

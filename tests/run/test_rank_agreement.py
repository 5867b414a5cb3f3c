"""Ranks with other files, settings or plans are named before anything is written."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast.base import distributed
from ptl_fast.demo.problems import generate
from ptl_fast.run import rank_agreement
from support.files import write_rows
from support.ranks import refused_ranks
from support.runs import RUN

ONE: dict[str, Any] = {"config": {"keep": 0.5}, "inputs": {"data": "a"}, "plan": [{"width": 24}]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, None),
        ({"config": {"keep": 0.25}}, "keep"),
        ({"inputs": {"data": "b"}}, "data"),
        ({"plan": [{"width": 16}]}, "plan"),
    ],
)
def test_the_rank_and_what_it_has_otherwise_are_named(
    change: dict[str, Any], named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**ONE, **change}
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "gathered", lambda own: [("a", ONE), ("b", ONE), ("c", other)])
    if named is None:
        rank_agreement.check(ONE)
    else:
        with pytest.raises(ValueError, match=f"rank 2 on c and rank 0 on a differ in {named}: "):
            rank_agreement.check(ONE)


def test_another_copy_of_the_data_on_one_rank_is_refused(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "other.jsonl", *generate(399, 9, "training"))
    settings = {**tiny_run, **RUN, "output": "run"}
    told = refused_ranks([settings, {**settings, "data": data}], tmp_path)
    assert "rank 1 on " in told[0]
    assert "differ in data: all ranks must run the same command" in told[0]
    assert not (tmp_path / "run").exists()

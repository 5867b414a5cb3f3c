"""A training sequence has a token to predict, and sources may be path objects."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast.config.data import DataSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sequence_length": 0}, "--sequence-length 0 must be at least 1"),
        ({"sequence_length": 1}, "--sequence-length 1 must be at least 2"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**values).check()


def test_defaults_make_sense() -> None:
    DataSettings().check()


def test_path_objects_name_sources(tmp_path: Path) -> None:
    settings = DataSettings(data=tmp_path / "a.jsonl", protect=tmp_path / "b.jsonl")
    assert (settings.data, settings.protect) == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl")

"""Seeds that every library takes, and at least one round kept."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast.config.run import RunSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "--seed -1 is outside"),
        ({"seed": 2**32}, "--seed 4294967296 is outside"),
        ({"keep_rounds": 0}, "--keep-rounds 0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSettings(**values).check()


def test_defaults_make_sense() -> None:
    RunSettings().check()


def test_a_path_object_names_the_folder(tmp_path: Path) -> None:
    assert RunSettings(output=tmp_path).output == str(tmp_path)

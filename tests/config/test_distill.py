"""A teacher's share, temperature and number of named tokens."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast.config.distill import DistillSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill_top_k": 0}, "--distill-top-k 0 must be at least 1"),
        ({"teacher_revision": "v1"}, "--teacher-revision is of --teacher, which is not given"),
        ({"distill_weight": 0.0}, "--distill-weight 0.0 is outside \\(0, 1\\]; .*--recovery cpt"),
        ({"distill_weight": 1.1}, "--distill-weight 1.1 is outside"),
        ({"distill_temperature": 0.0}, "--distill-temperature 0.0 must be a positive number"),
        ({"distill_temperature": float("inf")}, "--distill-temperature inf must be"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillSettings(**values).check()


def test_defaults_make_sense() -> None:
    DistillSettings().check()


def test_a_path_object_names_a_teacher(tmp_path: Path) -> None:
    assert DistillSettings(teacher=tmp_path).teacher == str(tmp_path)

"""A gate and what it allows are given together, as numbers that can be kept."""

from typing import Any

import pytest

from ptl_fast.config.gate import GateSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gate": "nll:nll"}, "give both or neither"),
        ({"max_drop": 0.1}, "give both or neither"),
        ({"gate": "nll:nll", "max_drop": -0.1}, "--max-drop -0.1 must be"),
        ({"gate": "nll:nll", "max_drop": float("nan")}, "--max-drop nan must be"),
        ({"max_extra_recovery": -1.0}, "--max-extra-recovery -1.0 must be"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateSettings(**values).check()


def test_defaults_make_sense() -> None:
    GateSettings().check()

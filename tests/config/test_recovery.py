"""Which recoveries follow one another, and how a round spends its tokens."""

from typing import Any

import pytest

from ptl_fast.config.recovery import RecoverySettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recovery": "cpt,cpt"}, "name each recovery once"),
        ({"recovery_tokens": 0}, "--recovery-tokens 0 must be at least 1"),
        ({"recovery_growth": float("nan")}, "--recovery-growth nan must be a finite number"),
        ({"recovery_growth": float("inf")}, "--recovery-growth inf must be a finite number"),
        ({"recovery_growth": 0.0}, "--recovery-growth 0.0 is outside"),
        ({"recovered_within": float("nan")}, "--recovered-within nan must be finite"),
        ({"anticipate": -1.0}, "--anticipate -1.0 also at least 0"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecoverySettings(**values).check()


def test_defaults_make_sense() -> None:
    RecoverySettings().check()


def test_names_stand_between_commas() -> None:
    settings = RecoverySettings(recovery="cpt, grpo", final_recovery="distill")
    assert settings.recoveries == ["cpt", "grpo"]
    assert settings.final_recoveries == ["distill"]
    assert settings.all_recoveries == ["cpt", "grpo", "distill"]

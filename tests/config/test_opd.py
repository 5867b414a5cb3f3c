"""On-policy distillation needs numbers that can be used."""

from typing import Any

import pytest

from ptl_fast.config.opd import OpdSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opd_prompts": 0}, "--opd-prompts 0 must be at least 1"),
        ({"opd_start_tokens": 0}, "--opd-start-tokens 0 must be at least 1"),
        (
            {"opd_start_tokens": 9, "opd_max_tokens": 8},
            "--opd-start-tokens 9 is above --opd-max-tokens 8",
        ),
        ({"opd_temperature": 0.0}, "--opd-temperature must be positive"),
        ({"opd_learning_rate": -1.0}, "--opd-learning-rate and --opd-temperature must be positive"),
        ({"opd_learning_rate": float("nan")}, "--opd-learning-rate nan must be a finite number"),
        ({"opd_jsd_beta": 1.0}, r"--opd-jsd-beta 1.0 is outside \(0, 1\)"),
        ({"opd_jsd_beta": float("nan")}, r"--opd-jsd-beta nan is outside \(0, 1\)"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpdSettings(**values).check()


def test_defaults_make_sense() -> None:
    OpdSettings().check()
    OpdSettings(opd_max_tokens=1).check()
    assert OpdSettings().beta == 1.0, "the reverse KL divergence"
    assert OpdSettings(opd_divergence="jsd", opd_jsd_beta=0.1).beta == 0.1

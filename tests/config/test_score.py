"""Scores need text, and protected text may not be all of it."""

from typing import Any

import pytest

from ptl_fast.config.score import ScoreSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"calibration_tokens": 0}, "--calibration-tokens 0 must be at least 1"),
        ({"protect_share": 1.0}, "--protect-share 1.0 is outside \\[0, 1\\)"),
        ({"protect_share": -0.1}, "--protect-share -0.1 is outside"),
        (
            {"token_weights": "divergence", "score_during_recovery": True},
            "--score-during-recovery has no such pass; leave one of the two out",
        ),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreSettings(**values).check()


def test_defaults_make_sense() -> None:
    ScoreSettings().check()

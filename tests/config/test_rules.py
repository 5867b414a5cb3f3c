"""Settings of two groups that exclude one another, or of which one lacks the other."""

from typing import Any

import pytest

from support.settings import settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "somewhere", "data": None}, "--data is missing"),
        ({"streaming": True, "recovery_tokens": None}, "say how much with --recovery-tokens"),
        (
            {"keep_optimizer_state": True, "deepspeed": "zero2"},
            "not supported with --deepspeed yet",
        ),
        (
            {"gate": "nll:nll", "max_drop": 0.1, "threshold": 0.1},
            "--threshold leaves to the scores",
        ),
        (
            {"target_flops": 0.5, "keep_experts": 0.5},
            "--keep-experts removes whole experts besides",
        ),
        (
            {"traces": True, "traces_every_round": True, "anticipate": 0.1},
            "--traces-every-round asks the model after a round, and --anticipate",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**values).check()


def test_a_dry_run_needs_no_data() -> None:
    settings(model="somewhere", data=None, dry_run=True).check()

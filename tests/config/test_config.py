"""Settings that exclude one another, or make no sense, are refused before any work, by the name
of a setting to change.
"""

from typing import Any

import pytest

from ptl_fast.config.prune import PruneSettings
from support.recovery import grpo_config
from support.settings import check, settings


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "learning_rate",
        "recovery_growth",
        "checkpoint_minutes",
        "grpo_learning_rate",
        "grpo_temperature",
        "grpo_kl",
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=f"--{name.replace('_', '-')} {value} must be a finite number"
    ):
        settings(**{name: value}).check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"gate": "nll:nll"}, "give both or neither", id="no-drop"),
        pytest.param({"max_drop": 0.1}, "give both or neither", id="no-gate"),
        pytest.param(
            {"gate": "nll:nll", "max_drop": -0.1}, "--max-drop -0.1 must be", id="negative"
        ),
        pytest.param(
            {"gate": "nll:nll", "max_drop": float("nan")}, "--max-drop nan must be", id="nan"
        ),
        pytest.param({"max_extra_recovery": -1.0}, "--max-extra-recovery -1.0 must be", id="extra"),
        pytest.param(
            {"gate": "nll:nll", "max_drop": 0.1, "threshold": 0.1},
            "--threshold leaves to the scores",
            id="threshold",
        ),
    ],
)
def test_gate_settings_that_do_not_go_together_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**values).check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(
            {"keep_optimizer_state": True, "deepspeed": "zero2"},
            "not supported with --deepspeed yet",
            id="deepspeed",
        ),
        pytest.param({"anticipate": -1.0}, "--anticipate -1.0 also at least 0", id="negative"),
        pytest.param(
            {"recovered_within": float("nan")}, "--recovered-within nan must be finite", id="nan"
        ),
        pytest.param(
            {"anticipate": 0.1, "recovery": "none"},
            "--anticipate is about training",
            id="no-training",
        ),
        pytest.param(
            {"lr_schedule": "run", "recovery": "none"},
            "--lr-schedule run is about training",
            id="no-schedule",
        ),
        pytest.param(
            {"score_once": True, "score_during_recovery": True},
            "leave it out",
            id="two-ways-to-score",
        ),
        pytest.param(
            {"anticipate": 0.1, "score_during_recovery": True}, "leave it out", id="too-late"
        ),
        pytest.param(
            {"lr_schedule": "week"}, "unknown --lr-schedule week; choose round, run", id="unknown"
        ),
    ],
)
def test_settings_of_training_that_do_not_go_together_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(settings(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recovery": "cpt,cpt"}, "name each recovery once"),
        ({"recovery": "none,grpo"}, "none only as --recovery none"),
        ({"final_recovery": "none"}, "none only as --recovery none"),
        ({"grpo_rollouts": 1}, "--grpo-rollouts 1 must be at least 2"),
        ({"grpo_temperature": 0.0}, "--grpo-temperature must be positive"),
        ({"grpo_prompts": 0}, "--grpo-prompts 0 must be at least 1"),
        (
            {"recovery": "grpo", "recovery_split": "until-recovered"},
            "--recovery-split until-recovered is about training on text",
        ),
        (
            {"recovery": "grpo", "score_during_recovery": True},
            "needs --recovery cpt or distill alone",
        ),
        (
            {"recovery": "none", "score_during_recovery": True, "scorer": "output-change"},
            "needs --recovery cpt or distill alone",
        ),
        ({"recovery": "cpt,grpo", "anticipate": 1.0}, "needs --recovery cpt or distill alone"),
        (
            {"recovery": "cpt,grpo", "keep_optimizer_state": True},
            "needs --recovery cpt or distill alone",
        ),
    ],
)
def test_recoveries_that_exclude_a_setting_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(grpo_config(**{"recovery": "cpt", **values}))


def test_reconstruction_needs_a_pass_of_its_own() -> None:
    with pytest.raises(ValueError, match="--scorer reconstruction needs a pass of its own"):
        check(settings(score_during_recovery=True))


def test_a_multiple_that_is_neither_is_refused() -> None:
    with pytest.raises(ValueError, match="--width-multiple 0 must be at least 1"):
        PruneSettings(width_multiple=0).check()
    PruneSettings(width_multiple="auto").check()

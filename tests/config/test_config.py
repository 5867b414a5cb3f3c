"""All settings: by flat names, in groups, with an identity that decides whether a run goes on."""

import pytest

from ptl_fast.config.config import FIELDS, GROUPS, RESUME_FREE, RESUME_ROUNDING, Config


def test_flat_names_are_unique_and_come_back() -> None:
    num_fields = sum(len(vars(group())) for group in GROUPS.values())
    assert len(FIELDS) == num_fields, "a name stands in two groups"
    config = Config.from_flat(keep=0.5, scorer="output-change", grpo_kl=0.1)
    assert (config.prune.keep, config.score.scorer, config.grpo.grpo_kl) == (
        0.5,
        "output-change",
        0.1,
    )
    assert Config.from_flat(**config.flat()) == config


def test_no_such_setting() -> None:
    with pytest.raises(TypeError, match="there is no setting keeep"):
        Config.from_flat(keeep=0.5)


def test_changed_is_a_copy() -> None:
    config = Config()
    assert config.changed(keep=0.25).prune.keep == 0.25
    assert config == Config()


def test_only_what_changes_no_result_may_differ_on_resume() -> None:
    config = Config.from_flat(recovery="grpo,opd")
    assert config.identity().keys() == FIELDS.keys() - RESUME_FREE
    assert config.changed(checkpoint_minutes=1.0).identity() == config.identity()
    assert config.changed(seed=1).identity() != config.identity()
    assert "micro_batch" in RESUME_ROUNDING
    assert not RESUME_FREE & RESUME_ROUNDING


def test_settings_of_a_recovery_that_the_run_has_not_do_not_decide_its_result() -> None:
    config = Config.from_flat(recovery="cpt", final_recovery="grpo")
    assert config.changed(opd_learning_rate=1.0).identity() == config.identity()
    assert config.changed(grpo_learning_rate=1.0).identity() != config.identity()


@pytest.mark.parametrize("name", ["lr_schedule", "order"])
def test_a_choice_that_is_none_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown --{name.replace('_', '-')} week; choose "):
        Config.from_flat(**{name: "week"}).check()


@pytest.mark.parametrize("name", ["recovery_tokens", "calibration_tokens", "keep_rounds"])
def test_numbers_beyond_any_use_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"10+ is beyond 1,000,000,000,000,000, which no run could"
    ):
        Config.from_flat(**{name: 10**30}).check()

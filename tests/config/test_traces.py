"""Own traces: what is kept, where answers end, and settings that make no sense."""

from typing import Any

import pytest

from ptl_fast.config.traces import TracesSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"traces_number": 0}, "--traces-number 0 must be at least 1"),
        ({"traces_batch": 0}, "--traces-batch 0 must be at least 1"),
        ({"traces_temperature": -0.1}, "--traces-temperature -0.1 must be at least 0"),
        ({"traces_temperature": float("nan")}, "--traces-temperature nan must be a finite"),
        ({"traces_top_p": 0.0}, "--traces-top-p 0.0 in \\(0, 1\\]"),
        ({"traces_keep": "best"}, "--traces-keep best: choose all, right or give a number"),
        ({"traces_keep": "1.5"}, "--traces-keep 1.5: choose"),
        ({"traces_every_round": True}, "--traces-every-round renews own answers"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TracesSettings(**values).check()


@pytest.mark.parametrize(("keep", "share"), [("all", 0), ("right", 1), ("0.8", 0.8), ("0", 0)])
def test_a_rule_is_the_smallest_share_of_right_answers(keep: str, share: float) -> None:
    settings = TracesSettings(traces=True, traces_keep=keep)
    settings.check()
    assert settings.right_share == share
    assert settings.needs_judging == (share > 0)


def test_a_renewal_needs_judging_and_nothing_does_without_traces() -> None:
    assert TracesSettings(traces=True, traces_every_round=True).needs_judging
    assert not TracesSettings(traces_keep="right").needs_judging


def test_answers_end_where_the_model_has_positions_for_a_prompt_too() -> None:
    assert TracesSettings().max_tokens(None) == TracesSettings().max_tokens(32768) == 1024
    assert TracesSettings().max_tokens(512) == 256
    assert TracesSettings(traces_max_tokens=300).max_tokens(512) == 300

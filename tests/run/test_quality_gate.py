"""Decisions of the quality gate by hand: a round that fails is extended, then undone, then ends the
run.
"""

from typing import Any

import pytest

from ptl_fast.run import quality_gate
from ptl_fast.run.quality_gate import Decision
from support.gate import gate
from support.plans import neuron_round


def decide(history: list[Decision], measured: float, own: int = 100, **values: Any) -> Decision:
    """The next decision on a neuron round that removed 64 neurons; it joins the history."""
    extra = quality_gate.extensions(history, 2)
    tokens = (extra[-1].next_tokens or 0) if extra else own
    step = neuron_round(64, 4, number=2, share=0.5)
    settings = {
        "max_extra_recovery": 1.0,
        "trains": True,
        "given": own,
        "next_step": 32,
        "reason": None,
        **values,
    }
    made = quality_gate.decide(
        gate(), history, step, removed=64, measured=measured, tokens=tokens, **settings
    )
    history.append(made)
    return made


@pytest.mark.parametrize(
    ("higher_is_better", "dense", "max_drop", "measured", "passes"),
    [
        pytest.param(True, 0.8, 0.1, 0.7, True, id="accuracy-at-the-limit-whatever-rounding-says"),
        pytest.param(True, 0.8, 0.1, 0.6999, False, id="accuracy-below"),
        pytest.param(True, 0.8, 0.1, 1.0, True, id="accuracy-above-dense"),
        pytest.param(True, 0.8, 0.0, 0.8, True, id="no-drop-allowed-and-none"),
        pytest.param(True, 0.8, 0.0, 0.799, False, id="no-drop-allowed"),
        pytest.param(False, 0.2, 0.1, 0.3, True, id="loss-at-the-limit"),
        pytest.param(False, 0.2, 0.1, 0.3001, False, id="loss-above"),
        pytest.param(False, 0.2, 0.1, 0.0, True, id="loss-below-dense"),
        pytest.param(False, 0.2, 0.1, float("nan"), False, id="loss-nan"),
        pytest.param(True, 0.2, 0.1, float("nan"), False, id="accuracy-nan"),
    ],
)
def test_gate_is_a_distance_from_dense(
    higher_is_better: bool, dense: float, max_drop: float, measured: float, passes: bool
) -> None:
    assert (
        gate(higher_is_better=higher_is_better, dense=dense, max_drop=max_drop).passes(measured)
        is passes
    )


def test_limit_is_on_the_metrics_worse_side() -> None:
    assert gate(higher_is_better=True).limit == 0.5
    assert gate(higher_is_better=False).limit == 1.5


def test_failed_round_is_extended_then_undone_then_ends_the_run() -> None:
    history: list[Decision] = []
    first, second, third = (decide(history, 9.0) for _ in range(3))
    assert [
        (made.action, made.extension, made.tokens, made.next_tokens)
        for made in (first, second, third)
    ] == [
        ("extend", 0, 100, 50),
        ("extend", 1, 50, 50),
        ("back-off", 2, 50, None),
    ]
    assert third.next_step == 32
    assert (quality_gate.attempt(history, 2), quality_gate.extensions(history, 2)) == (2, []), (
        "the second attempt begins anew"
    )
    assert decide(history, 9.0, own=60, max_extra_recovery=0.8).next_tokens == 30, (
        "half of the round's own tokens"
    )
    assert decide(history, 9.0, own=60, max_extra_recovery=0.8).next_tokens == 18, (
        "and what is left of 0.8"
    )
    last = decide(
        history, 9.0, own=60, max_extra_recovery=0.8, next_step=None, reason="it is the smallest"
    )
    assert (last.action, last.attempt, last.reason) == ("stop", 2, "it is the smallest")
    assert quality_gate.stop(history) == last
    said = quality_gate.stopped_sentence(history)
    assert said is not None
    assert (
        "round 2 failed the gate nll:nll, and it is the smallest. The result is the model after"
        " round 1."
    ) in said


@pytest.mark.parametrize("num_failures", [0, 1, 2])
def test_round_that_passes_goes_no_further(num_failures: int) -> None:
    history: list[Decision] = []
    for _ in range(num_failures):
        assert decide(history, 1.6).action == "extend"
    assert decide(history, 1.5).action == "pass"
    assert quality_gate.has_passed(history, 2)
    assert not quality_gate.has_passed(history, 1)
    assert quality_gate.stopped_sentence(history) is None


@pytest.mark.parametrize(("share", "trains"), [(0.0, True), (0.5, False)])
def test_where_nothing_can_be_extended_a_failed_round_is_undone_at_once(
    share: float, trains: bool
) -> None:
    assert decide([], 9.0, max_extra_recovery=share, trains=trains).action == "back-off"


def test_recovery_without_text_is_extended_too() -> None:
    made = decide([], 9.0, own=0)
    assert (made.action, made.next_share, made.next_tokens) == ("extend", 0.5, 0)


@pytest.mark.parametrize(
    ("own", "more", "expected"),
    [
        pytest.param(0, 0.0, [50, 50], id="nothing-used"),
        pytest.param(0, 0.5, [50, 50, 50], id="nothing-used-and-more-allowed"),
        pytest.param(30, 0.0, [50, 20], id="some-used"),
        pytest.param(30, 0.1, [50, 30], id="some-used-and-more-allowed"),
        pytest.param(100, 0.0, [], id="all-used"),
        pytest.param(100, 0.0099, [], id="too-little-to-measure"),
    ],
)
def test_round_that_ended_early_is_extended_by_what_it_did_not_use(
    own: int, more: float, expected: list[int]
) -> None:
    history: list[Decision] = []
    while decide(history, 9.0, own=own, given=100, max_extra_recovery=more).action == "extend":
        pass
    assert [made.next_tokens for made in history[:-1]] == expected
    assert [made.tokens for made in history] == [own, *expected]
    assert history[-1].action == "back-off"


def test_different_values_look_different() -> None:
    assert quality_gate.told_apart(0.5, 0.5, 0.25) == ["0.5000", "0.5000", "0.2500"]
    assert quality_gate.told_apart(0.00006, 0.00007, 0.00007) == ["0.00006", "0.00007", "0.00007"]

"""The schedule of a run, from its settings, and as a quality gate looks at it."""

import math
from dataclasses import replace
from typing import Any

from ptl_fast.config.presets import shipped_config
from ptl_fast.model.widths import ExpertLimits
from ptl_fast.pruning.schedule import with_final
from ptl_fast.run.rounds import Rounds, make_schedule
from support.plans import layer_round, neuron_round
from support.recovery import grpo_config


def test_final_recovery_is_the_last_of_the_schedule() -> None:
    settings = grpo_config(keep=0.5, rounds=2, recovery="cpt", final_recovery="grpo")
    demo: Any = shipped_config("ptl-demo")
    schedule = make_schedule(settings, demo)
    assert [step.kind for step in schedule] == ["neurons", "neurons", "final"]
    assert [step.number for step in schedule] == [1, 2, 3]
    assert schedule[2].recovery_share == schedule[1].recovery_share
    assert math.isclose(sum(step.recovery_share for step in schedule[:2]), 1)


def four_rounds(gate_on: tuple[str, str] | None = None) -> Rounds:
    """48 neurons and 5 layers: 40, then 4 layers, then 24, and a final recovery."""
    schedule = with_final(
        [neuron_round(40, 5, 1, 0.5), layer_round(40, 4, 2, 0.2), neuron_round(24, 4, 3, 0.3)]
    )
    return Rounds(schedule, 48, 5, 8, gate_on)


def test_a_round_removes_what_the_one_before_it_had() -> None:
    rounds = four_rounds()
    assert [rounds.removed(step) for step in rounds.schedule] == [8, 1, 16, 0]
    assert [rounds.smaller_step(step)[0] for step in rounds.schedule] == [None, None, 8, None]
    assert rounds.smaller_step(rounds.schedule[0])[1] == (
        "8 neurons a layer is the smallest step (--width-multiple 8)"
    )


def test_experts_are_halved_by_groups() -> None:
    limits = ExpertLimits(number=16, active=2, groups=4, fewest=8)
    step = replace(layer_round(48, 5), kind="experts", num_experts=8)
    rounds = Rounds([step], 48, 5, 8, ("nll", "nll"), limits)
    assert rounds.removed(step) == 8
    assert rounds.smaller_step(step)[0] == 4
    (halves,) = rounds.split(1, 4)
    assert [each.num_experts for each in halves] == [12, 8]


def test_the_final_recovery_is_neither_judged_nor_waited_for() -> None:
    rounds = four_rounds(("nll", "nll"))
    first, second, third, final = rounds.schedule
    assert [rounds.is_judged(step) for step in rounds.schedule] == [True, True, True, False]
    assert not any(four_rounds().is_judged(step) for step in rounds.schedule), "there is no gate"
    assert rounds.after(first) == [second, third]
    assert rounds.after(third) == []
    assert rounds.after(final) == []


def test_smaller_steps_leave_the_other_kind_and_the_end_where_they_are() -> None:
    groups = four_rounds().split(3, 8)
    assert [[(step.kind, step.width) for step in group] for group in groups] == [
        [("neurons", 40)],
        [("layers", 40)],
        [("neurons", 32), ("neurons", 24)],
        [("final", 24)],
    ]
    assert [step.number for group in groups for step in group] == [1, 2, 3, 4, 5]

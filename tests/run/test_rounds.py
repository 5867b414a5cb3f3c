"""The schedule of a run, from its settings."""

import math
from typing import Any

from ptl_fast.config.presets import shipped_config
from ptl_fast.run.rounds import make_schedule
from support.recovery import grpo_config


def test_final_recovery_is_the_last_of_the_schedule() -> None:
    settings = grpo_config(keep=0.5, rounds=2, recovery="cpt", final_recovery="grpo")
    demo: Any = shipped_config("ptl-demo")
    schedule = make_schedule(settings, demo)
    assert [step.kind for step in schedule] == ["neurons", "neurons", "final"]
    assert [step.number for step in schedule] == [1, 2, 3]
    assert schedule[2].recovery_share == schedule[1].recovery_share
    assert math.isclose(sum(step.recovery_share for step in schedule[:2]), 1)

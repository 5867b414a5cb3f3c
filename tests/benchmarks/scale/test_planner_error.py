"""The estimate beside a run: what is compared with what."""

import time

from benchmarks.scale import planner_error
from benchmarks.scale.planner_error import Stages, compared
from ptl_fast.run.stage_costs import Cost


def test_a_stage_has_what_happens_inside_it_and_its_own_peak() -> None:
    stages = Stages()
    with stages.timed("one"):
        block = bytearray(300 * 2**20)
        with stages.timed("inner"):
            time.sleep(0.05)
        del block
    with stages.timed("two"):
        pass
    assert stages.taken.keys() == {"one", "two"}
    # sleeping takes no processor
    assert stages.taken["one"]["processor"] < stages.taken["one"]["wall"] - 0.03
    assert stages.taken["one"]["wall"] >= 0.05
    # the mark was set back: what the first had is not the second's
    assert stages.taken["two"]["peak_gib"] < stages.taken["one"]["peak_gib"] - 0.2


def test_stages_are_compared_with_their_estimates_and_together() -> None:
    costs = [
        Cost(stage="loading", seconds=5.0, device_bytes=2**30, host_bytes=2**30),
        Cost(stage="saving", seconds=1.0, device_bytes=2**31, host_bytes=2**31),
    ]
    taken = {
        name: {"wall": 8.0, "processor": 2.0, "peak_gib": peak}
        for name, peak in (
            ("loading libraries", 0.5),
            ("reading the model and the data", 1.5),
            ("saving", 1.0),
            ("writing the result", 0.7),
        )
    }
    found = compared(costs, taken)
    assert found["loading"]["processor"] == 4.0
    assert found["loading"]["peak_gib"] == 1.5
    assert found["together"]["estimated_processor"] == 6.0
    assert found["together"]["estimated_peak_gib"] == 2.0
    assert found["together"]["processor"] == 8.0


def test_the_estimate_is_of_the_settings_given() -> None:
    flags = ["--preset", "demo", "--device", "cpu", "--eval-tasks", "none"]
    stages = [each.stage for each in planner_error.estimated([*flags, "--rounds", "2"])]
    assert stages == ["loading", "scoring", "pruning", "recovery", "saving"]

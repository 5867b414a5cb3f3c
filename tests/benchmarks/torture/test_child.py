"""A fault happens at the change of the folder that it is asked for, and not at another."""

import signal
from pathlib import Path

import pytest

from benchmarks.torture import child
from benchmarks.torture.child import Fault
from benchmarks.torture.trial import RUNS, Inputs, empty, fault_of, result


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs.make(tmp_path_factory.mktemp("inputs"))


def test_a_kill_and_a_full_disk_come_at_their_moment(inputs: Inputs, tmp_path: Path) -> None:
    flags = inputs.flags("cpt")
    whole = child.run(flags, empty(tmp_path / "whole"))
    assert whole.code == 0
    assert whole.num_changes > 100
    killed = child.run(flags, empty(tmp_path / "work"), Fault("kill", 60))
    assert (killed.code, killed.num_changes) == (-signal.SIGKILL, 60)
    full = child.run(flags, tmp_path / "work", Fault("full", 10))
    assert full.code == 2
    assert fault_of(full) == ""
    assert "No space left on device" in full.told
    assert child.run(flags, tmp_path / "work").code == 0
    assert result(tmp_path / "work") == result(tmp_path / "whole") != ""


def test_every_kind_of_run_is_a_command(inputs: Inputs) -> None:
    for kind in RUNS:
        assert inputs.flags(kind)[::2] == [f"--{each[2:]}" for each in inputs.flags(kind)[::2]]

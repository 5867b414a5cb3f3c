"""Where a whole run's time goes."""

import json
from pathlib import Path

import pytest

from benchmarks.recovery import stages


def test_shares_by_hand() -> None:
    rounds = [
        {"seconds": {"calibrate": 1.0, "compact": 0.5, "recover": 20.0, "evaluate": 4.0}},
        {"seconds": {"calibrate": 2.0, "compact": 0.5, "recover": 40.0, "evaluate": 6.0}},
    ]
    seconds = stages.summed(rounds)
    assert seconds == {"calibrate": 3.0, "compact": 1.0, "recover": 60.0, "evaluate": 10.0}
    assert stages.shares(seconds, 100.0) == {
        "loop_overhead": 4 / 64,
        "not_recovery": pytest.approx(0.4),
    }


def test_stages_of_a_run_add_up(tmp_path: Path) -> None:
    file = tmp_path / "stages_test.json"
    flags = (
        "--preset demo --rounds 1 --keep 0.5 --recovery-tokens 2000 --calibration-tokens 500"
        " --eval-tasks nll --eval-limit 4 --device cpu"
    )
    stages.main(["--json", str(file), "--name", "short", "--", *flags.split()])
    result = json.loads(file.read_text())
    assert (result["name"], result["num_rounds"]) == ("short", 1)
    assert sum(result["seconds"].values()) == pytest.approx(result["total"])
    assert all(value > 0 for value in result["seconds"].values())
    assert 0 < result["loop_overhead"] < result["not_recovery"] < 1

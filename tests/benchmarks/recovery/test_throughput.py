"""Recovery's throughput beside TRL's."""

import json
from typing import Any

import pytest

from benchmarks.recovery import throughput
from benchmarks.recovery.trainings import TimedSteps


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("recovery") / "throughput_test.json"
    sizes = ["--sequence-length", "128", "--batch", "2", "--steps", "2", "--rounds", "2"]
    throughput.main([*sizes, "--device", "cpu", "--json", str(file)])
    return json.loads(file.read_text())


def test_every_way_trains_or_says_why_not(measured: dict[str, Any]) -> None:
    rows = {row["way"]: row for row in measured["rows"]}
    ok = {"ours", "ours, fused FFN", "ours, without packing", "TRL"}
    assert {name for name, row in rows.items() if row["status"] == "ok"} == ok
    assert rows["ours, Liger"]["status"] == "not measured: a GPU and --liger are needed"
    assert rows["TRL"]["vs_trl"] == 1
    for name in ok:
        assert rows[name]["tokens_per_second"] > 0
        assert 0 < rows[name]["utilisation"] < 1.5
    # packed sequences of 128 tokens, two a step, against documents of about 66
    assert 150 < rows["ours"]["tokens_per_step"] <= 256
    for name in ("ours, without packing", "TRL"):
        assert rows[name]["tokens_per_step"] == pytest.approx(
            rows["ours"]["tokens_per_step"], rel=0.4
        )
    assert rows["ours"]["first_loss"] == pytest.approx(
        rows["ours, fused FFN"]["first_loss"], rel=1e-3
    )


def test_rate_leaves_out_the_first_step() -> None:
    assert throughput.rate(TimedSteps([50.0, 2.0, 4.0, 3.0], [], 30.0)) == 10.0


def test_another_loss_is_refused() -> None:
    throughput.check_losses({"ours": 2.0, "ours, fused FFN": 2.01, "TRL": 9.0})
    with pytest.raises(
        SystemExit, match=r"'ours, fused FFN': its first loss is 2\.1000, and ours 2\.0000"
    ):
        throughput.check_losses({"ours": 2.0, "ours, fused FFN": 2.1})


def test_liger_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="GPUs only"):
        throughput.main(["--device", "cpu", "--liger"])

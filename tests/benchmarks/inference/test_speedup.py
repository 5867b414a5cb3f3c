"""Measured speedups stand beside predicted ones, and mean what their names say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.models import random_model, shape_config
from benchmarks.inference import speedup
from benchmarks.inference.workloads import Times, Workload
from support.benchmarks import known_rates


def test_speedup_is_the_median_of_ratios_of_samples_that_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    times = {
        "dense": [10.0, 99.0, 40.0, 30.0, 90.0],
        "compressed": [9.0, 11.0, 20.0, 10.0, 10.0],
    }  # the first one warms up

    def run(model: Any, workload: Workload) -> Times:
        calls.append(model.name)
        return Times(times[model.name][calls.count(model.name) - 1], 1.0, 1.0)

    models: Any = {}
    for name in times:
        models[name] = random_model(shape_config("tiny"), "cpu", torch.float32)
        models[name].name = name
    monkeypatch.setattr(speedup, "run", run)
    predicted = {"dense": (5.0, 4.0), "compressed": (2.0, 1.0)}
    monkeypatch.setattr(
        speedup,
        "predict",
        lambda *_: {
            name: {"predicted_ms": each[0], "device_ms": each[1]}
            for name, each in predicted.items()
        },
    )
    row = speedup.measure(models, Workload("prefill", 1, 8, 1), known_rates(), num_samples=4)
    assert calls == ["dense", "compressed"] + ["dense", "compressed", "compressed", "dense"] * 2
    assert row["speedup"] == pytest.approx((3 + 9) / 2)  # of 9, 2, 3 and 9
    assert row["speedup_p20"] <= row["speedup"] <= row["speedup_p80"]
    assert row["predicted_speedup"] == 2.5
    assert row["of_predicted"] == pytest.approx(6 / 2.5)
    assert row["device_speedup"] == 4.0
    assert row["dense"]["time_ms"] == (40 + 90) / 2
    assert row["dense"]["peak_gib"] is None
    assert row["dense"]["joules_per_token"] is None


def test_speedup_results_are_complete(speed_results: Path) -> None:
    results = json.loads((speed_results / "speedup_test.json").read_text())
    assert results["model"] == "dense"
    assert [results["sizes"]["compressed"][name] for name in ("width", "num_layers")] == [96, 1]
    assert {row["engine"]: row["status"] for row in results["rows"]} == {
        "transformers": "ok",
        "vllm": "not measured: vllm is not installed",
    }
    rows = [row for row in results["rows"] if row["engine"] == "transformers"]
    workloads = [
        (row["work"], row["batch_size"], row["prompt_length"], row["new_tokens"]) for row in rows
    ]
    assert workloads == [("prefill", 2, 16, 1), ("decode", 2, 8, 3), ("paper", 1, 128, 64)]
    for row in rows:
        assert row["device_speedup"] > 1, (
            "both models are predicted from the same rates, whatever these are"
        )
        for model in (row["dense"], row["compressed"]):
            assert model["predicted_ms"] == pytest.approx(model["device_ms"] + model["host_ms"])
        # with the host's time, which is measured, and at this size noise
        assert row["predicted_speedup"] == pytest.approx(
            row["dense"]["predicted_ms"] / row["compressed"]["predicted_ms"]
        )
        assert row["of_predicted"] == pytest.approx(row["speedup"] / row["predicted_speedup"])
        assert row["dense"]["flops"] > row["compressed"]["flops"] > 0
        assert row["dense"]["num_bytes"] > row["compressed"]["num_bytes"] > 0
        assert row["dense"]["tokens_per_second"] > 0
    assert results["environment"]["transformers"]
    assert any(name.startswith("gemm 32 x 64 x 256") for name in results["rates"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "tiny", "--compressed", "x"], "--compressed is a model of its own"),
        (["--shape", "tiny", "--model", "x"], "not allowed with"),
        (["--new-tokens", "1"], "must be at least 2"),
        (["--prefill", "8"], "invalid batch_and_length"),
    ],
)
def test_speedup_refuses_flags_that_do_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        speedup.main(arguments)
    assert message in capsys.readouterr().err

"""What a workload must take: the device's operations and the host's part."""

import pytest
import torch

from benchmarks.harness.models import shape_config
from benchmarks.harness.stopwatch import Stopwatch
from benchmarks.inference import prediction
from benchmarks.inference.model_size import ModelSize
from benchmarks.inference.roofline import Rates
from benchmarks.inference.workloads import Times, Workload
from support.benchmarks import known_rates, tiny_model


def test_host_follows_the_device_on_a_cpu_and_is_one_measurement_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter(range(1, 100))
    monkeypatch.setattr(
        prediction, "run", lambda model, workload: Times(float(next(times)), 1.0, 1.0)
    )
    monkeypatch.setattr(
        prediction,
        "device_ms",
        lambda model, workload, rates: float(model.config.intermediate_size),
    )
    predicted = prediction.predict(
        {"dense": tiny_model(), "compressed": tiny_model(96)},
        Workload("prefill", 2, 8, 1),
        known_rates(),
    )
    host = 1 + (1 + prediction.HOST_SAMPLES) / 2  # the first one warms up
    assert predicted["dense"] == {"predicted_ms": 256 + host, "device_ms": 256.0, "host_ms": host}
    assert predicted["compressed"] == {
        "predicted_ms": 96 + host,
        "device_ms": 96.0,
        "host_ms": host,
    }


def test_workload_counts_its_passes() -> None:
    size = ModelSize(shape_config("tiny"), torch.float32)
    step = size.decode(1, 128 + 32)
    whole = prediction.flops_and_bytes(size, Workload("paper", 1, 128, 64))
    assert whole == {name: size.prefill(1, 128)[name] + 63 * step[name] for name in step}
    assert prediction.flops_and_bytes(size, Workload("decode", 1, 128, 64)) == step
    assert prediction.flops_and_bytes(size, Workload("prefill", 1, 128, 1)) == size.prefill(1, 128)


def test_narrower_model_is_predicted_to_be_faster_by_no_more_than_its_ffn() -> None:
    models = {"dense": tiny_model(), "compressed": tiny_model(128)}
    rates = Rates(models["dense"], Stopwatch("cpu", 1 << 20))
    for workload in (Workload("prefill", 2, 64, 1), Workload("decode", 2, 16, 4)):
        predicted = prediction.predict(models, workload, rates)
        for name in ("predicted_ms", "device_ms"):
            assert 1 < predicted["dense"][name] / predicted["compressed"][name] < 2
        assert predicted["dense"]["host_ms"] == predicted["compressed"]["host_ms"] > 0

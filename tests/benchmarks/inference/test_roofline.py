"""Rates of the device, and the times that operations take at them."""

from typing import Any

import pytest

from benchmarks.harness.stopwatch import Stopwatch
from benchmarks.inference import roofline
from benchmarks.inference.operations import Operation
from benchmarks.inference.roofline import Rates
from support.benchmarks import known_rates, tiny_model


@pytest.mark.parametrize(
    ("operation", "seconds"),
    [
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 256)), 3.0, id="gemm of the dense model"
        ),
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 96)),
            3.0,
            id="narrower gemm at the dense one's rate",
        ),
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 192)), 3.0, id="fused gate and up"
        ),
        pytest.param(
            Operation("gemm", 3_000_000_000, 1, (4, 64, 64)), 6.0, id="gemm beside the FFN"
        ),
        pytest.param(
            Operation("attention", 5_000_000_000, 1_000_000, (1, 4, 8, 16, 8, 2)),
            2.5,
            id="attention",
        ),
        pytest.param(Operation("other", 0, 20_000_000, (1 << 20,)), 2.0, id="other"),
    ],
)
def test_an_operation_takes_its_amount_over_the_rate_of_its_kind(
    operation: Operation, seconds: float
) -> None:
    rates = known_rates()
    rates.measured["gemm 4 x 64 x 512, FLOP/s"] = 1e9
    assert rates.seconds([operation, operation], width=96) == pytest.approx(2 * seconds)


def test_rates_are_amounts_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call takes half a millisecond on this clock, however many follow one another."""
    stopwatch = Stopwatch("cpu", 1 << 20)
    calls = [0]

    weights = set()

    def count(*arguments: Any, **keywords: Any) -> None:
        calls[0] += 1
        weights.update(map(id, arguments[1:]))

    def time_ms(call: Any, warm: bool = False) -> float:
        before = calls[0]
        call()
        return 0.5 * (calls[0] - before)

    monkeypatch.setattr(stopwatch, "time_ms", time_ms)
    monkeypatch.setattr(roofline, "linear", count)
    monkeypatch.setattr(roofline, "scaled_dot_product_attention", count)
    rates = Rates(tiny_model(), stopwatch)
    assert rates.gemm(4, 64, 256) == pytest.approx(2 * 4 * 64 * 256 / 5e-4)
    assert calls[0] == 2 + int(roofline.SECONDS_PER_TIMING / 5e-4) * roofline.NUM_TIMINGS
    assert len(weights) == 9, "as many as the model's 622,592 bytes hold"
    assert rates.attention(2, 4, 8, 16, 8, 2) == pytest.approx(4 * 2 * 4 * 8 * 8 * 16 / 5e-4)

"""The clock that all benchmarks read."""

import time

import pytest
import torch

from benchmarks.harness import clock
from benchmarks.harness.stopwatch import Stopwatch


def test_process_clock_does_not_count_waiting_and_is_refused_with_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match="OMP_NUM_THREADS=1"):
        clock.choose("process")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    stopwatch = Stopwatch("cpu", 1 << 10)
    clock.choose("process")
    try:
        assert stopwatch.time_ms(lambda: time.sleep(0.1)) < 50
    finally:
        clock.choose("wall")
    assert stopwatch.time_ms(lambda: time.sleep(0.1)) >= 100

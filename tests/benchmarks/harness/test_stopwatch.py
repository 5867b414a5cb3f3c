"""Calls are timed once, with what the caches hold."""

import pytest

from benchmarks.harness import clock
from benchmarks.harness.stopwatch import Stopwatch, timed


def test_timed_returns_the_result_and_the_seconds_of_one_call() -> None:
    times = iter([2.0, 5.0])
    assert timed(lambda: "result", lambda: next(times)) == ("result", 3.0)


@pytest.mark.parametrize(("warm", "num_calls"), [(False, 1), (True, 2)])
def test_only_the_last_call_is_timed(
    warm: bool, num_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = [0.0], []

    def call() -> None:
        calls.append(now[0])
        now[0] += 0.25

    monkeypatch.setitem(clock.CLOCKS, "wall", lambda: now[0])
    assert Stopwatch("cpu", 1 << 10).time_ms(call, warm=warm) == 250
    assert len(calls) == num_calls

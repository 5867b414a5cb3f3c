"""Time calls on a CPU or a GPU."""

from collections.abc import Callable
from typing import TypeVar

import torch

from benchmarks.harness import clock

T = TypeVar("T")

# Read before each timed call: more than the last-level cache of most devices. On CUDA the
# host runs ahead of the device meanwhile, so that the launch of the first kernel is not timed.
FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}


def timed(call: Callable[[], T], now: Callable[[], float] = clock.now) -> tuple[T, float]:
    """Call once, with the caches as they are; return the result and the seconds by this clock."""
    start = now()
    result = call()
    return result, now() - start


class Stopwatch:
    """Times one call with flushed caches, or, if ``warm``, right after an untimed call of it."""

    def __init__(self, device: str, flush_bytes: int) -> None:
        self.device = device
        self.flush = torch.ones(flush_bytes // 4, device=device)

    def time_ms(self, call: Callable[[], object], warm: bool = False) -> float:
        """Milliseconds of one call: between events on CUDA, by the chosen clock on a CPU."""
        self.flush.sum()
        if warm:
            call()
        if self.device == "cpu":
            return 1e3 * timed(call)[1]
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)

"""Time a call on a CPU or a GPU, with cold caches."""

from collections.abc import Callable

import torch

from benchmarks.harness import clock

# Read before each call: more than the last cache of most devices. On CUDA it also lets the host run
# ahead of the device, so that the host's time to launch a first kernel stays outside.
FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}


class Stopwatch:
    """Times one call on a device whose caches hold something else, or what an untimed call before
    it left (``warm``).
    """

    def __init__(self, device: str, flush_bytes: int) -> None:
        self.device = device
        self.flush = torch.ones(flush_bytes // 4, device=device)

    def time_ms(self, call: Callable[[], object], warm: bool = False) -> float:
        """Device time of one call on CUDA, the chosen clock's on CPU."""
        self.flush.sum()
        if warm:
            call()
        if self.device == "cpu":
            start = clock.now()
            call()
            return 1000 * (clock.now() - start)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)

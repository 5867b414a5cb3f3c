"""What a device reaches at best: its copy bandwidth and its rate of matrix products."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.harness.environment import dtype_name
from benchmarks.harness.stopwatch import Stopwatch

NUM_TIMINGS = 10


def ceilings(
    device: str, dtypes: Sequence[torch.dtype], stopwatch: Stopwatch, quick: bool
) -> dict[str, Any]:
    """What the device reaches: a copy in GB/s (bytes read and bytes written both count), and a
    square GEMM in TFLOP/s for each dtype.
    """
    num_elements = (4 if quick else 64 if device == "cpu" else 512) << 20
    source = torch.randn(num_elements, device=device)
    # filled, so that the pages are there before the first copy is timed
    target = torch.empty(num_elements, device=device).fill_(1.0)
    copy_ms = statistics.median(
        stopwatch.time_ms(lambda: target.copy_(source)) for _ in range(NUM_TIMINGS)
    )
    size = 256 if quick else 1024 if device == "cpu" else 8192
    gemm_tflops = {}
    for dtype in dtypes:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        left @ right  # warms up: the vendor's library chooses its kernel
        gemm_ms = statistics.median(
            stopwatch.time_ms(lambda: left @ right)  # noqa: B023
            for _ in range(NUM_TIMINGS)
        )
        gemm_tflops[dtype_name(dtype)] = 2 * size**3 / gemm_ms / 1e9
    return {"copy_gbs": 2 * source.nbytes / copy_ms / 1e6, "gemm_tflops": gemm_tflops}

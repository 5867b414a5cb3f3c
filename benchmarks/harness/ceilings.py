"""What a device reaches at best: its copy bandwidth and its rate of matrix products."""

import statistics
from typing import Any

import torch

from benchmarks.harness.environment import dtype_name
from benchmarks.harness.stopwatch import Stopwatch
from benchmarks.kernels.cases import DTYPES


def ceilings(device: str, stopwatch: Stopwatch, quick: bool) -> dict[str, Any]:
    """What the device reaches: a copy in GB/s (read and written bytes both count), a square GEMM in
    TFLOP/s by dtype.
    """
    num_elements = (4 if quick else 64 if device == "cpu" else 512) << 20
    numbers, copied = (
        torch.randn(num_elements, device=device),
        torch.empty(num_elements, device=device).fill_(1.0),
    )
    copy_ms = statistics.median(stopwatch.time_ms(lambda: copied.copy_(numbers)) for _ in range(10))
    size = 256 if quick else 1024 if device == "cpu" else 8192
    tflops = {}
    for dtype in DTYPES[device]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        left @ right
        gemm_ms = statistics.median(stopwatch.time_ms(lambda: left @ right) for _ in range(10))  # noqa: B023
        tflops[dtype_name(dtype)] = 2 * size**3 / gemm_ms / 1e9
    return {"copy_gbs": 2 * numbers.nbytes / copy_ms / 1e6, "gemm_tflops": tflops}

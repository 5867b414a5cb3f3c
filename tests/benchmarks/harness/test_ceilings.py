"""What a device reaches: bytes and FLOPs over the time that the stopwatch gives."""

from typing import Any

import pytest
import torch

from benchmarks.harness.ceilings import ceilings


class TenMilliseconds:
    """A stopwatch on which every call takes ten milliseconds."""

    def time_ms(self, call: Any, warm: bool = False) -> float:
        call()
        return 10.0


def test_copy_counts_both_directions_and_gemm_two_flops() -> None:
    stopwatch: Any = TenMilliseconds()
    reached = ceilings("cpu", [torch.float32], stopwatch, quick=True)
    assert reached["copy_gbs"] == pytest.approx(2 * 4 * (4 << 20) / 0.01 / 1e9)
    assert reached["gemm_tflops"] == {"float32": pytest.approx(2 * 256**3 / 0.01 / 1e12)}

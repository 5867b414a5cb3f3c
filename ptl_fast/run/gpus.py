"""GPUs that predictions are made for: their peaks by name, and --dry-run-gpus."""

import math
import re
from dataclasses import dataclass

from ptl_fast.config.checking import nearest

THIS = "this"
"""The value of --dry-run-gpus for the machine that it runs on."""
# Assumed shares of the peak that work reaches: a model's passes on a GPU, and on a CPU, where the
# peak is measured; least squares; and single large products. Those of a CPU are measured
# (docs/scale.md).
UTILISATION, ON_CPU, OF_SOLVING, OF_PRODUCTS = 0.4, 0.6, 0.4, 0.8
# up to this width least squares are in fp64 everywhere (base.positive_definite)
NARROW = 2048


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peak dense bf16 TFLOP/s, memory and its bandwidth, by NVIDIA's data sheets (SXM versions); or
    what a CPU reached in a trial.
    """

    tflops: float
    """On a CPU in float32."""
    memory_gib: int
    bandwidth_gbs: float
    tflops64: float
    """Of products in float64."""
    tflops32: float
    """Of products in float32 that are not rounded to TF32."""
    name: str = ""
    """What it is called where it is this machine's."""
    is_cpu: bool = False

    @property
    def flops(self) -> float:
        """What a model's passes reach, a second."""
        return 1e12 * self.utilisation * self.tflops

    @property
    def utilisation(self) -> float:
        """Share of the peak that a model's passes reach."""
        return ON_CPU if self.is_cpu else UTILISATION

    @property
    def flops64(self) -> float:
        """What large products in float64 reach, a second."""
        return 1e12 * OF_PRODUCTS * self.tflops64

    def in_float32(self, width: int) -> bool:
        """Whether least squares of this width are in float32: wide ones, where float64 is slower
        than half of it, and on CPUs.
        """
        return width > NARROW and (self.is_cpu or self.tflops64 < self.tflops32 / 2)

    def solving(self, width: int) -> float:
        """What least squares of this width reach, a second."""
        peak = self.tflops32 if self.in_float32(width) else self.tflops64
        return 1e12 * OF_SOLVING * peak


# H100's and A100's float64 is that of their tensor cores; the RTX 4090's peaks are those of its
# white paper, and its float64 is 1/64 of float32
GPUS = {
    "A100-40GB": Gpu(tflops=312, memory_gib=40, bandwidth_gbs=1555, tflops64=19.5, tflops32=19.5),
    "A100-80GB": Gpu(tflops=312, memory_gib=80, bandwidth_gbs=2039, tflops64=19.5, tflops32=19.5),
    "H100-80GB": Gpu(tflops=989, memory_gib=80, bandwidth_gbs=3350, tflops64=67, tflops32=67),
    "H200": Gpu(tflops=989, memory_gib=139, bandwidth_gbs=4800, tflops64=67, tflops32=67),
    "RTX-4090": Gpu(tflops=165, memory_gib=24, bandwidth_gbs=1008, tflops64=1.29, tflops32=82.6),
}


def parse_gpus(text: str) -> tuple[int, Gpu]:
    """Parse COUNTxNAME of --dry-run-gpus, such as 4xA100-80GB, into (number, GPU).

    Raises:
        ValueError: it has another form, or the GPU is unknown.
    """
    match = re.fullmatch(r"([1-9]\d*)x(.+)", text)
    if match is None or match[2] not in GPUS:
        raise ValueError(
            f"--dry-run-gpus {text} is not COUNTxNAME, such as 4xA100-80GB, with NAME one of"
            f" {', '.join(GPUS)}, nor {THIS}, for this machine"
            f"{nearest(text.partition('x')[2], GPUS)}"
        )
    return int(match[1]), GPUS[match[2]]


def device_peaks(own_flag: str, text: str) -> tuple[float, float]:
    """(peak TFLOP/s, GB/s of memory) of a GPU by name, or of TFLOPS/GBS.

    Raises:
        ValueError: it is neither; lists the names.
    """
    if text in GPUS:
        return GPUS[text].tflops, GPUS[text].bandwidth_gbs
    try:
        tflops, bandwidth = map(float, text.split("/"))
    except ValueError:
        tflops = bandwidth = 0.0
    if not (0 < tflops < math.inf and 0 < bandwidth < math.inf):
        raise ValueError(
            f"{own_flag} {text}: choose {', '.join(GPUS)}, or give peaks, TFLOPS/GBS, such as"
            f" 0.5/40 for a CPU of 0.5 TFLOP/s and 40 GB/s{nearest(text, GPUS)}"
        )
    return tflops, bandwidth

"""GPUs that predictions are made for: their peaks by name, and --dry-run-gpus."""

import math
import re
from dataclasses import dataclass

from ptl_fast.config.checking import nearest

THIS = "this"
"""The value of --dry-run-gpus for the machine that it runs on."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peak dense bf16 TFLOP/s, memory and its bandwidth, by NVIDIA's data sheets (SXM versions); or
    what a CPU reached in a trial.
    """

    tflops: float
    memory_gib: int
    bandwidth_gbs: float
    name: str = ""
    """What it is called where it is this machine's."""


GPUS = {
    "A100-40GB": Gpu(tflops=312, memory_gib=40, bandwidth_gbs=1555),
    "A100-80GB": Gpu(tflops=312, memory_gib=80, bandwidth_gbs=2039),
    "H100-80GB": Gpu(tflops=989, memory_gib=80, bandwidth_gbs=3350),
    "H200": Gpu(tflops=989, memory_gib=139, bandwidth_gbs=4800),
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

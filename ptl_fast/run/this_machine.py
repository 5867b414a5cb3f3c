"""What this machine can do, for predictions: its GPUs by their names, or its CPU by a short trial.

Nothing here imports torch, so that a preset's dry run answers at once.
"""

import functools
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ptl_fast.run.gpus import GPUS, THIS, Gpu, parse_gpus

# A trial is the best of some products of square matrices, a few milliseconds each, in the time of
# the processors: other processes do not lengthen that.
TRIAL_SIZE, NUM_TRIALS = 768, 8
COPIED_BYTES = 2**26
MIB_PER_GIB = 1024
# Driver's names: each of these words, and at least this memory in GiB.
KNOWN = (
    ("A100", 60, "A100-80GB"),
    ("A100", 30, "A100-40GB"),
    ("H100", 70, "H100-80GB"),
    ("H200", 130, "H200"),
    ("RTX 4090", 20, "RTX-4090"),
)


def chosen(text: str) -> tuple[int, Gpu]:
    """(number, each) of the devices of --dry-run-gpus.

    Raises:
        ValueError: it has another form, or the GPU is unknown.
    """
    return found() if text == THIS else parse_gpus(text)


def named(text: str) -> str:
    """The devices of --dry-run-gpus in a sentence."""
    return f"this machine ({found()[1].name})" if text == THIS else text


def of_device(device: str) -> tuple[int, Gpu] | None:
    """(number, each) of this machine's devices of the kind of one that torch names, such as cpu or
    cuda:0; None if it is a GPU that is not known.
    """
    return (1, cpu()) if device == "cpu" else known_gpus(_listed_gpus())


@functools.cache
def found() -> tuple[int, Gpu]:
    """(number, each) of the GPUs of this machine that are alike and known, or (1, its CPU)."""
    listed = _listed_gpus()
    known = known_gpus(listed)
    if known is not None or not listed:
        return known or (1, cpu())
    unknown = f"{cpu().name}; its GPU is none of those that --dry-run-gpus names"
    return 1, replace(cpu(), name=unknown)


def known_gpus(listed: list[str]) -> tuple[int, Gpu] | None:
    """(number, each) of a list of GPUs, if all are one that ``gpus.GPUS`` has.

    Args:
        listed: a line "NAME, MEMORY in MiB" for each, as nvidia-smi writes it.
    """
    names = {_known(line) for line in listed}
    if len(names) != 1 or None in names:
        return None
    name = names.pop()
    assert name is not None
    count = f"{len(listed)} x " if len(listed) > 1 else ""
    return len(listed), replace(GPUS[name], name=f"{count}{name}")


def _known(line: str) -> str | None:
    """The name in ``gpus.GPUS`` of a GPU in nvidia-smi's words."""
    name, _, memory = line.rpartition(",")
    if not memory.strip().isdigit():
        return None
    gib = int(memory) / MIB_PER_GIB
    return next((own for word, least, own in KNOWN if word in name and gib > least), None)


def _listed_gpus() -> list[str]:
    """The GPUs that this process may use, as the driver's own tool lists them; [] without one."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = listed.stdout.splitlines()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return lines
    # also where devices are given by their unique names, which are as many
    return lines[: len([each for each in visible.split(",") if each not in ("", "-1")])]


@functools.cache
def cpu() -> Gpu:
    """The CPU with as many threads as numpy and torch take: OMP_NUM_THREADS, or all cores."""
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    count = int(threads) if threads.isdigit() and int(threads) else cores
    at_once = min(count, cores)
    tflops, tflops64 = (_product_flops(each, at_once) / 1e12 for each in (np.float32, np.float64))
    return Gpu(
        tflops=tflops,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30,
        bandwidth_gbs=_copied_bytes() / 1e9,
        tflops32=tflops,
        tflops64=tflops64,
        is_cpu=True,
        name=(
            f"CPU, {count} thread{'s' if count > 1 else ''}, {1000 * tflops:.0f} GFLOP/s in float32"
            " in a trial just now"
        ),
    )


def _product_flops(dtype: type[np.floating], threads: int) -> float:
    """FLOPs a second of a product of matrices of this type, with so many cores to itself."""
    matrix = np.ones((TRIAL_SIZE, TRIAL_SIZE), dtype)
    return 2 * TRIAL_SIZE**3 * threads / _best(lambda: matrix @ matrix)


def _copied_bytes() -> float:
    """Bytes a second that are read and written by a copy."""
    source = np.zeros(COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    return 2 * COPIED_BYTES / _best(lambda: np.copyto(target, source))


def _best(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of some calls."""
    seconds = []
    for _ in range(NUM_TRIALS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)

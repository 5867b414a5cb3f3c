"""The machine and the library versions that a result belongs to."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import clock, nvml
from benchmarks.harness.results import checked_out
from ptl_kernels import cpu


def dtype_name(dtype: torch.dtype) -> str:
    """bfloat16 and the like."""
    return str(dtype).removeprefix("torch.")


def environment(device: str) -> dict[str, Any]:
    """The device and the versions that the numbers belong to."""
    head, changed = checked_out()
    return {
        "device_type": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "clock": clock.chosen(),
        # glibc's settings: without any, it hands large blocks back to the system, and each new
        # activation is paged in anew
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "cpu_instruction_set": cpu.instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": nvml.driver_version() if device == "cuda" else None,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "liger_kernel": _version("liger-kernel"),
        "commit": head,
        "dirty": changed,
    }


def processor_name() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""The machine, the library versions and the commit that a result belongs to."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import clock, nvml
from ptl_kernels import cpu

ROOT = Path(__file__).parents[2]
# While a benchmark runs, results and documents may be written: they do not make the code dirty.
CODE = (".", ":!benchmarks/results", ":!docs")


def dtype_name(dtype: torch.dtype) -> str:
    """bfloat16 and the like."""
    return str(dtype).removeprefix("torch.")


def environment(device_type: str) -> dict[str, Any]:
    """The machine, versions and commit, by the names that the results have them under.

    ``device_type`` is cpu or cuda.
    """
    head, dirty = checked_out()
    on_gpu = device_type == "cuda"
    return {
        "device_type": device_type,
        "device": torch.cuda.get_device_name() if on_gpu else processor_name(),
        "threads": torch.get_num_threads(),
        "clock": clock.chosen(),
        # glibc's malloc returns large blocks to the system by default, so that each new activation
        # costs page faults; environment variables can make it keep them
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "cpu_instruction_set": cpu.instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": nvml.driver_version() if on_gpu else None,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "liger_kernel": _version("liger-kernel"),
        "commit": head,
        "dirty": dirty,
    }


def processor_name() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def checked_out() -> tuple[str | None, bool | None]:
    """The commit, and whether the code differs from it.

    A copy of the tree without .git reads the commit from the variable COMMIT; whether its code
    differs is then unknown, None.
    """
    head, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *CODE)
    return head or os.environ.get("COMMIT"), None if status is None else bool(status)


def short_commit() -> str:
    """The first nine digits of the commit, with a plus sign if the code differs from it."""
    head, dirty = checked_out()
    return head[:9] + ("+" if dirty else "") if head else "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

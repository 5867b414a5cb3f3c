"""Record the machine and the library versions that a result was measured with."""

import importlib.metadata
import platform

import torch


def environment(device: str) -> dict[str, str]:
    """The device's name, CPU threads, and versions of Python and packages, for report.json."""
    # platform.processor() is empty on many Linux systems
    name = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or platform.machine()
    )
    packages = (
        "ptl_fast",
        "torch",
        "triton",
        "transformers",
        "trl",
        "datasets",
        "deepspeed",
        "lm_eval",
        "math_verify",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # optional packages, such as deepspeed, and the package itself when run from its sources
            versions[package] = "not installed"
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **versions,
    }

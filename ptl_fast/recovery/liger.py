"""Training with Liger kernels, and removing Liger's patches afterwards."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

from torch import nn


def liger_kernels(has_own_ffn: bool) -> dict[str, bool]:
    """Return transformers' ``liger_kernel_config`` ({kernel: on or off}).

    Args:
        has_own_ffn: whether ptl_kernels' fused FFN is in the model; Liger's FFN is then off.
    """
    return {
        # off: it replaces torch's cross_entropy for the whole process
        "cross_entropy": False,
        "fused_linear_cross_entropy": True,
        "swiglu": not has_own_ffn,
        "geglu": not has_own_ffn,
    }


def check_liger(device: str) -> None:
    """Raise ValueError on a CPU, or if the package liger-kernel is not installed."""
    if device == "cpu":
        raise ValueError(
            "--liger trains on kernels that run on GPUs only, and this run is on a CPU; leave it"
            " out (--fused-ffn is for both)"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ValueError(
            "--liger needs the package liger-kernel; pip install liger-kernel, or leave it out"
        )


@contextlib.contextmanager
def unpatched_afterwards(model: nn.Module) -> Iterator[None]:
    """Undo Liger's patches on exit, as scoring and evaluation need transformers' own modules.

    Liger replaces classes and functions in transformers' modeling file of the model's family, and
    forward methods of the model's modules.
    """
    # the modeling file's globals, where Liger puts its own classes
    namespace = vars(sys.modules[type(model).__module__])
    before, names = dict(namespace), {module: set(vars(module)) for module in model.modules()}
    yield
    namespace.update(before)
    for module, known in names.items():
        for name in set(vars(module)) - known:
            delattr(module, name)

"""Training on Liger's kernels, and leaving no trace of them."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

from torch import nn


def liger_kernels(has_own_ffn: bool) -> dict[str, bool]:
    """Which of Liger's kernels train: no loss that all of torch would share, and no FFN where ours
    stands.
    """
    return {
        "cross_entropy": False,
        "fused_linear_cross_entropy": True,
        "swiglu": not has_own_ffn,
        "geglu": not has_own_ffn,
    }


def check_liger(device: str) -> None:
    """Raise ValueError where --liger cannot work."""
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
    """Undo what Liger puts into a model's modules and into transformers' module of its family, for
    scoring and evaluation.
    """
    namespace = vars(sys.modules[type(model).__module__])
    before, names = dict(namespace), {module: set(vars(module)) for module in model.modules()}
    yield
    namespace.update(before)
    for module, known in names.items():
        for name in set(vars(module)) - known:
            delattr(module, name)

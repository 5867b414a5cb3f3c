"""Errors of writing: which file or folder, and how much space there is."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ptl_fast.base.atomic_files import nearest_folder
from ptl_fast.base.console import reason
from ptl_fast.base.errors import StorageFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TORCH_SAVES = ("PytorchStreamWriter", "inline_container", "unexpected pos")
"""In the errors of torch.save when the disk is full."""


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Name the file or folder, and the free space, in errors of what writes it.

    Raises:
        StorageFailed: in place of any error of the file system, or of what writes to it.
    """
    try:
        yield
    except StorageFailed:
        raise
    except Exception as error:
        if not _is_storage(error):
            raise
        raise StorageFailed(f"{path} cannot be written: {reason(error)}{_free(path)}") from error


def check_space(path: Path, needed_bytes: int) -> None:
    """Raise StorageFailed if fewer bytes are free where ``path`` is to be written."""
    free = shutil.disk_usage(nearest_folder(path)).free
    if free < needed_bytes:
        raise StorageFailed(
            f"{path} needs about {needed_bytes / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are"
            " free on its disk"
        )


def model_bytes(model: "PreTrainedModel", itemsize: int | None = None) -> int:
    """The bytes of a model's weights, tied ones once; each of ``itemsize``, or as in memory."""
    return sum(each.numel() * (itemsize or each.element_size()) for each in model.parameters())


def _is_storage(error: Exception) -> bool:
    """Whether an error is one of writing: safetensors and torch.save raise types of their own."""
    if isinstance(error, OSError) or type(error).__module__.startswith("safetensors"):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in TORCH_SAVES)


def _free(path: Path) -> str:
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(nearest_folder(path)).free
        return f" ({free / 2**20:,.1f} MiB are free on its disk)"
    return ""

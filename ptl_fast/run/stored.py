"""What a run keeps on disk, one file or folder at a time: written by the main rank, whole or not at
all, and the same for all ranks.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import publish, write_atomically

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stored:
    """A file or folder with a name of its own in the run's folder."""

    path: Path

    def exists(self) -> bool:
        """Whether it is there, as the main rank sees it; what is there is whole."""
        return distributed.agree(self.path.exists())

    def remove(self) -> None:
        """Delete it; if it is not there that is no error."""
        remove(self.path)


class JsonFile(Stored):
    """A JSON file."""

    def read(self) -> Any:
        """Its content, None where there is none.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return json.loads(self.path.read_text()) if self.path.exists() else None
        except ValueError as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); delete it, or begin anew with --overwrite"
            ) from error

    def write(self, content: Any) -> None:
        write_bytes(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def once(self, compute: Callable[[], Any]) -> Any:
        """Its content, computed (on all ranks) and written if it is not there."""
        content = distributed.agree(self.read())
        if content is None:
            content = distributed.agree(compute())
            self.write(content)
        return content


class TensorFile(Stored):
    """Named tensors in a safetensors file."""

    def read(self) -> "dict[str, Tensor]":
        from safetensors.torch import load_file

        return load_file(self.path)

    def write(self, tensors: "dict[str, Tensor]") -> None:
        from safetensors.torch import save

        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        write_bytes(self.path, save(contiguous))


class ModelFolder(Stored):
    """A model and its tokenizer as a Hugging Face folder."""

    def save(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        if distributed.is_main():
            temporary = temporary_folder(self.path)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            publish(temporary, self.path)
        distributed.barrier()


def temporary_folder(folder: Path) -> Path:
    """Where a folder is made before it gets its name; what an interruption left there goes."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, once for all ranks."""
    if distributed.is_main():
        write_atomically(path, content)
    distributed.barrier()


def remove(*paths: Path) -> None:
    """Delete files and folders, once for all ranks; one that is not there is no error."""
    if distributed.is_main():
        for path in paths:
            if path.is_file():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
    distributed.barrier()

"""Files and folders of a run, each written by atomic rename, by the main rank alone.

A crash leaves the old content, or the new, or a ``.tmp`` beside it that the next write replaces.
So a file that exists is complete, and its existence can say that a stage is done. All ranks must
call the methods that write; they return after the main rank has written.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import publish, temporary_folder, write_atomically

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stored:
    """A file or folder in the run's folder."""

    path: Path

    def exists(self) -> bool:
        """Whether it exists; if so, it is complete."""
        # the main rank's answer: shared file systems may show a new file to other ranks later, and
        # ranks that take different branches wait for each other forever
        return distributed.agree(self.path.exists())

    def remove(self) -> None:
        """Delete it, on the main rank; no error if it does not exist."""
        remove(self.path)


class JsonFile(Stored):
    """A JSON file."""

    def read(self) -> Any:
        """The content, None if the file does not exist. Each rank reads for itself.

        Raises:
            ValueError: the file is not valid JSON.
        """
        try:
            return json.loads(self.path.read_text()) if self.path.exists() else None
        except ValueError as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); delete it, or begin anew with --overwrite"
            ) from error

    def write(self, content: Any) -> None:
        """Write the content, replacing the file."""
        write_bytes(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def once(self, compute: Callable[[], Any]) -> Any:
        """The content; if the file does not exist, it is computed on all ranks and written.

        This makes a stage resumable: after a restart, a finished stage is read and not repeated.
        """
        content = distributed.agree(self.read())
        if content is None:
            # the main rank's result: floating-point sums may differ between ranks
            content = distributed.agree(compute())
            self.write(content)
        return content


class TensorFile(Stored):
    """Named tensors in a safetensors file."""

    def read(self) -> "dict[str, Tensor]":
        """The tensors by name, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.path)

    def write(self, tensors: "dict[str, Tensor]") -> None:
        """Write the tensors, replacing the file."""
        from safetensors.torch import save

        # safetensors refuses views with strides
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        write_bytes(self.path, save(contiguous))


class ModelFolder(Stored):
    """A model and its tokenizer in a folder that ``from_pretrained`` loads."""

    def save(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Save both on the main rank, replacing the folder in one rename."""
        if distributed.is_main():
            # several files: they are complete together, once the folder has its name
            temporary = temporary_folder(self.path)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            publish(temporary, self.path)
        distributed.barrier()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by atomic rename on the main rank; the other ranks wait for it."""
    if distributed.is_main():
        write_atomically(path, content)
    distributed.barrier()


def remove(*paths: Path) -> None:
    """Delete files and folders on the main rank; no error for one that does not exist."""
    if distributed.is_main():
        for path in paths:
            if path.is_file():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
    distributed.barrier()

"""Files and folders of a run: how they are written, and whether what they hold is done.

This module alone answers "is it done?"; base/run_files.py has the names. A file is written by
atomic rename: a crash leaves the old content, or the new, or a ``.tmp`` beside it that the next
write replaces. So a file that exists is complete, and its existence says that a stage is done. A
folder that somebody else fills in place, such as the Trainer's checkpoint, gets a marker file last.

The main rank writes. All ranks must call the methods that write, rename or delete; they return
after the main rank is done.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import publish, sync, temporary_folder, write_atomically

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


WHOLE = "complete"
"""Marker file of a complete folder: the sizes of its other files, as JSON; written last."""


@dataclass(frozen=True)
class Stored:
    """A file or folder."""

    path: Path

    def exists(self) -> bool:
        """Whether it exists and is complete. All ranks must call this, and get the same answer."""
        # the main rank's answer: shared file systems may show a new file to other ranks later, and
        # ranks that take different branches wait for each other forever
        return distributed.agree(self.is_whole())

    def is_whole(self) -> bool:
        """The same, as this rank alone sees it."""
        # written by atomic rename
        return self.path.exists()

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

    def holds(self, name: str, shape: list[int]) -> bool:
        """Whether, as this rank sees it, the file is whole and has a tensor of this name and shape.

        Reads the header only. After a power failure, a file may be truncated on some file systems.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                return file.get_slice(name).get_shape() == shape
        except (OSError, SafetensorError):
            return False


class FilledFolder(Stored):
    """A folder that is written under a temporary name, and renamed once its files are complete."""

    def fill(self, write: Callable[[Path], None]) -> None:
        """Replace the folder by what ``write``, called on the main rank, puts into a new one.

        Raises:
            ValueError: ``write`` has found a fault, of which every rank hears. The folder is as it
                was, and the new one stays under its temporary name until the next attempt.
        """
        fault = None
        if distributed.is_main():
            temporary = temporary_folder(self.path)
            temporary.mkdir(parents=True)
            try:
                write(temporary)
                publish(temporary, self.path)
            except ValueError as error:
                fault = error
        # the others would wait for a main rank that has gone
        fault = distributed.agree(fault)
        if fault is not None:
            raise fault


class ModelFolder(FilledFolder):
    """A model and its tokenizer in a folder that ``from_pretrained`` loads."""

    def save(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Save both on the main rank, replacing the folder in one rename."""

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        self.fill(write)


class MarkedFolder(FilledFolder):
    """A folder that is complete once it was marked, and as long as its files have those sizes.

    It may be written in place. After a power failure, files that were not flushed to disk may be
    missing or truncated although the marker is there.
    """

    def is_whole(self) -> bool:
        marker = self.path / WHOLE
        return marker.is_file() and json.loads(marker.read_text()) == self._sizes()

    def mark(self) -> None:
        """Mark the folder as complete, on the main rank, once every rank has come to this call."""
        distributed.barrier()
        if distributed.is_main():
            self._mark_here()
        distributed.barrier()

    def fill(self, write: Callable[[Path], None]) -> None:
        """As ``FilledFolder.fill``; the new folder is marked before it gets its name."""

        def write_and_mark(folder: Path) -> None:
            write(folder)
            MarkedFolder(folder)._mark_here()

        super().fill(write_and_mark)

    def _mark_here(self) -> None:
        write_atomically(self.path / WHOLE, json.dumps(self._sizes()).encode())

    def _sizes(self) -> dict[str, int]:
        """{path in the folder: bytes} of all files but the marker."""
        files = sorted(file for file in self.path.rglob("*") if file.is_file())
        return {
            str(file.relative_to(self.path)): file.stat().st_size
            for file in files
            if file.name != WHOLE
        }


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


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder on the main rank, replacing ``new``; no error if ``old`` is missing.

    A crash may leave ``new`` deleted and ``old`` in place; repeating the call completes it.
    """
    if distributed.is_main() and old.exists():
        # rename() replaces a file, but not a folder that has files
        if new.is_dir():
            shutil.rmtree(new)
        old.rename(new)
        sync(new.parent)
    distributed.barrier()

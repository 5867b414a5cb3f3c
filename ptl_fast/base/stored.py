"""Files and folders of a run: how they are written, and whether what they hold is done.

This module alone answers "is it done?"; base/run_files.py has the names. A file is written by
atomic rename: a crash leaves the old content, or the new, or a ``.tmp`` beside it that the next
write replaces. So a file that exists is complete, and its existence says that a stage is done. A
folder that somebody else fills in place, such as the Trainer's checkpoint, gets a marker file last.
Done is also only what still holds what was written: base/checksums.py lists that. What is damaged
or lost counts as missing, so that it is made again; what cannot be made again is asked for by
``given`` or ``read``, which raise an error that names it.

The main rank writes. All ranks must call the methods that write, rename or delete; they return
after the main rank is done.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import checksums, distributed, json_text, own_folder
from ptl_fast.base.atomic_files import (
    publish,
    sync,
    temporary_folder,
    write_atomically,
)
from ptl_fast.base.console import reason, say
from ptl_fast.base.disk import check_space, storing
from ptl_fast.base.errors import StorageFailed

if TYPE_CHECKING:
    from torch import Tensor


WHOLE = "complete"
"""Marker file of a complete folder: the sizes and checksums of its other files, as JSON; written
last. Of older versions it has the sizes alone.
"""

COPIES = "copies"
"""Folder of the second copies of files that no stage can make again."""
DAMAGED = "does not hold what this run wrote there (damaged, changed, lost, or another run's)"


@dataclass(frozen=True)
class Stored:
    """A file or folder."""

    path: Path

    def exists(self) -> bool:
        """Whether it exists and is complete. All ranks must call this, and get the same answer."""
        # the main rank's answer: shared file systems may show a new file to other ranks later, and
        # ranks that take different branches wait for each other forever
        return distributed.agree(distributed.is_main() and self._is_whole_or_says_why())

    def _is_whole_or_says_why(self) -> bool:
        whole = self.is_whole()
        if not whole and checksums.is_damaged(self.path):
            say(f"{checksums.difference(self.path)} {DAMAGED}; it counts as missing.")
        return whole

    def is_damaged(self) -> bool:
        """Whether a run wrote it, and it is lost now or holds something else."""
        return distributed.agree(distributed.is_main() and checksums.is_damaged(self.path))

    def given(self) -> bool:
        """As ``exists``, for what is optional and cannot be made again.

        Raises:
            ValueError: it was written, and is damaged or lost.
        """
        if self.is_damaged():
            raise self._damaged()
        return self.exists()

    def _damaged(self) -> ValueError:
        return ValueError(
            f"{checksums.difference(self.path)} {DAMAGED}, and cannot be made again from what is"
            " left; put its content back from a copy, delete the folders of its round and of later"
            " ones to compute these again, or begin anew with --overwrite"
        )

    def is_whole(self) -> bool:
        """The same, as this rank alone sees it."""
        return checksums.is_whole(self.path)

    def remove(self) -> None:
        """Delete it, on the main rank; no error if it does not exist."""
        remove(self.path)


@dataclass(frozen=True)
class JsonFile(Stored):
    """A JSON file. What is no JSON, or lacks what is needed of it, counts as damaged, whatever the
    checksums say: they may be lost, or an older version kept none.
    """

    needs: tuple[str, ...] | None = None
    """Names that the object in it has; None if it may hold anything."""

    def is_whole(self) -> bool:
        return super().is_whole() and self._parsed()[1] is None

    def is_damaged(self) -> bool:
        flawed = distributed.is_main() and self.path.exists() and self._parsed()[1] is not None
        return super().is_damaged() or distributed.agree(flawed)

    def _is_whole_or_says_why(self) -> bool:
        if checksums.is_whole(self.path) and (flaw := self._parsed()[1]) is not None:
            say(f"{self.path} is damaged ({flaw}); it counts as missing.")
        return super()._is_whole_or_says_why()

    def _parsed(self) -> tuple[Any, str | None]:
        """The content of the file, which exists, and what is wrong with it; None if nothing is."""
        try:
            content = json_text.loads(self.path.read_text())
        except (OSError, ValueError) as error:
            return None, reason(error)
        if self.needs is None:
            return content, None
        if not isinstance(content, dict):
            return content, f"it holds no object, but {type(content).__name__}"
        lacking = [name for name in self.needs if name not in content]
        return content, f"it lacks {', '.join(lacking)}" if lacking else None

    def read(self) -> Any:
        """The content, None if the file was never written. Each rank reads for itself.

        Raises:
            ValueError: the file is damaged or lost.
        """
        # the list is the main rank's: a network file system may show others an older one
        if distributed.is_main() and checksums.is_damaged(self.path):
            raise self._damaged()
        if not self.path.exists():
            return None
        content, flaw = self._parsed()
        if flaw:
            raise ValueError(
                f"{self.path} is damaged ({flaw}); delete it, or begin anew with --overwrite"
            )
        return content

    def write(self, content: Any) -> None:
        """Write the content, replacing the file."""
        write_bytes(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def found(self) -> Any:
        """The content, the same on all ranks; None if the file does not exist or is damaged."""
        return distributed.agree(self.read()) if self.exists() else None

    def once(self, compute: Callable[[], Any]) -> Any:
        """The content; if the file does not exist, it is computed on all ranks and written.

        This makes a stage resumable: after a restart, a finished stage is read and not repeated.
        """
        content = self.found()
        if content is None:
            # the main rank's result: floating-point sums may differ between ranks
            content = distributed.agree(compute())
            self.write(content)
        return content


@dataclass(frozen=True)
class TwiceStored(JsonFile):
    """A JSON file that no stage can make again, with a copy in a folder beside it."""

    @property
    def copy(self) -> JsonFile:
        return JsonFile(self.path.parent / COPIES / self.path.name, self.needs)

    def is_whole(self) -> bool:
        return super().is_whole() or self.copy.is_whole()

    def read(self) -> Any:
        """The content, or the copy's if the file is damaged or lost; None if neither exists."""
        if super().is_whole() or not self.copy.is_whole():
            return super().read()
        return self.copy.read()

    def write(self, content: Any) -> None:
        # the copy last: a crash leaves the new file, or both as they were
        super().write(content)
        self.copy.write(content)

    def _damaged(self) -> ValueError:
        return ValueError(
            f"{self.path} and its copy, {self.copy.path}, do not hold what this run wrote there"
            " (damaged, changed, lost, or another run's), and nothing else has it: put one of them"
            " back, or begin anew with --overwrite"
        )

    def remove(self) -> None:
        remove(self.path, self.copy.path)


class TensorFile(Stored):
    """Named tensors in a safetensors file."""

    def read(self) -> "dict[str, Tensor]":
        """The tensors by name, on the CPU.

        Raises:
            ValueError: the file is damaged or lost.
        """
        from safetensors.torch import load_file

        if distributed.is_main() and checksums.is_damaged(self.path):
            raise self._damaged()
        return load_file(self.path)

    def write(self, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
        """Write the tensors, replacing the file."""
        from safetensors.torch import save

        # safetensors refuses views with strides
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        write_bytes(self.path, save(contiguous, metadata))

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

    def fill(self, write: Callable[[Path], None], needed_bytes: int = 0) -> None:
        """Replace the folder by what ``write``, called on the main rank, puts into a new one.

        Raises:
            StorageFailed: fewer than ``needed_bytes`` are free, or it cannot be written.
            ValueError: ``write`` has found a fault, of which every rank hears. The folder is as it
                was, and the new one stays under its temporary name until the next attempt.
        """
        fault: Exception | None = None
        if distributed.is_main():
            try:
                own_folder.check(self.path)
                check_space(self.path, needed_bytes)
                with storing(self.path):
                    temporary = temporary_folder(self.path)
                    temporary.mkdir(parents=True)
                    write(temporary)
                    checksums.announce(self.path, checksums.of_path(temporary))
                    publish(temporary, self.path)
                    checksums.confirm(self.path)
            except (ValueError, StorageFailed) as error:
                fault = error
        # the others would wait for a main rank that has gone
        fault = distributed.agree(fault)
        if fault is not None:
            raise fault


class ModelFolder(FilledFolder):
    """A model and its tokenizer in a folder that ``from_pretrained`` loads."""


class MarkedFolder(FilledFolder):
    """A folder that is complete once it was marked, and as long as its files have that content.

    It may be written in place. After a power failure, files that were not flushed to disk may be
    missing or truncated although the marker is there.
    """

    def is_whole(self) -> bool:
        marker = self.path / WHOLE
        try:
            marked = json_text.loads(marker.read_text())
            # older versions did not say of which run it is, and kept no checksums
            of, own = marked.pop(WHOLE, None), checksums.owner(self.path.parent)
            if None not in (of, own) and of != own:
                return False
            has_sums = all(isinstance(each, list) for each in marked.values())
            sizes = {name: each[0] if has_sums else each for name, each in marked.items()}
        except (OSError, ValueError, AttributeError, IndexError):
            return False
        if sizes != self._sizes():
            return False
        sums = {name: checksums.of_file(self.path / name) for name in sizes if has_sums}
        return not has_sums or all(sums[name] == marked[name][1] for name in sums)

    def _is_whole_or_says_why(self) -> bool:
        return self.is_whole()

    @property
    def was_complete(self) -> bool:
        """Whether it was marked, whatever has become of it since."""
        return (self.path / WHOLE).exists()

    def mark(self) -> None:
        """Mark the folder as complete, on the main rank, once every rank has come to this call."""
        distributed.barrier()
        if distributed.is_main():
            self._mark_here()
        distributed.barrier()

    def fill(self, write: Callable[[Path], None], needed_bytes: int = 0) -> None:
        """As ``FilledFolder.fill``; the new folder is marked before it gets its name."""

        def write_and_mark(folder: Path) -> None:
            write(folder)
            MarkedFolder(folder)._mark_here()

        super().fill(write_and_mark, needed_bytes)

    def _mark_here(self) -> None:
        marked: dict[str, Any] = {
            name: [size, checksums.of_file(self.path / name)]
            for name, size in self._sizes().items()
        }
        own = checksums.owner(self.path.parent)
        if own is not None:
            marked[WHOLE] = own  # no other file's name
        with storing(self.path):
            write_atomically(self.path / WHOLE, json.dumps(marked).encode())

    def _sizes(self) -> dict[str, int]:
        """{path in the folder: bytes} of all files but the marker."""
        files = sorted(file for file in self.path.rglob("*") if file.is_file())
        return {
            str(file.relative_to(self.path)): file.stat().st_size
            for file in files
            if file.name != WHOLE
        }


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by atomic rename on the main rank; the other ranks wait for it.

    Raises:
        StorageFailed: it does not fit on the disk, or cannot be written.
    """
    if distributed.is_main():
        write_here(path, content)
    distributed.barrier()


def write_here(path: Path, content: bytes) -> None:
    """The same on this rank alone.

    Raises:
        ValueError: it lies in the run's folder, which somebody has deleted or moved.
    """
    own_folder.check(path)
    check_space(path, len(content))
    with storing(path):
        checksums.announce(path, checksums.of_bytes(content))
        write_atomically(path, content)
        checksums.confirm(path)


def remove(*paths: Path) -> None:
    """Delete files and folders on the main rank; no error for one that does not exist."""
    if distributed.is_main():
        for path in paths:
            checksums.announce_deletion(path)
            if path.is_file():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
    distributed.barrier()


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder on the main rank, replacing ``new``; no error if ``old`` is missing.

    A crash may leave ``new`` deleted and ``old`` in place; repeating the call completes it.
    """
    if distributed.is_main() and old.exists():
        with storing(new):
            _rename(old, new)
    distributed.barrier()


def _rename(old: Path, new: Path) -> None:
    sums = checksums.latest(old)
    if sums is not None:
        checksums.announce(new, sums)
        checksums.announce(old, None)
    # rename() replaces a file, but not a folder that has files
    if new.is_dir():
        shutil.rmtree(new)
    old.rename(new)
    sync(new.parent)
    if sums is not None:
        checksums.confirm(new)

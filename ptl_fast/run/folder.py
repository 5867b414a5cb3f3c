"""A run's folder: every file in it appears whole or not at all, and what is there need not be
computed again.

state.json                       settings and data that the run belongs to
dense.json                       the original's evaluation
round-01/plan.json               what went, and why: with statistics.safetensors, which also holds
the scores round-01/pruned.json             evaluation before recovery, and recovered.json after it
round-01/recovery/               checkpoints inside recovery, while it lasts
round-01/recovery.json           the steps and tokens that recovery took, its checks of held-out
text, its rewards round-01/optimizer.safetensors   with --keep-optimizer-state: Adam's moments,
until the next round has its own round-01/model/                  the weights after recovery (newest
rounds only)
round-01/seconds.json            of each stage
round-01/record.json             the finished round
decisions.json                   with --gate: what was measured and decided, in order
round-01/*-extra-1*              with --gate: the same of an extension of recovery; its model
becomes model/ when the round passes round-01.failed-1/               with --gate: a round that was
undone, without weights
final/                           the result: an ordinary Hugging Face folder
report.json, report.md, log/     for people and tools; log/ is for TensorBoard
width_multiple.json              with --width-multiple auto: what was measured
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import sync, write_atomically
from ptl_fast.config.config import ONLY_ROUNDING
from ptl_fast.run.quality_gate import suffix

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
LOCK = ".lock"
BEFORE_STATE = {LOCK, "state.json.tmp"}
# What a run writes at the top of its folder, besides LOCK.
WRITTEN = re.compile(
    r"(round-\d{2,}(\.failed-\d+)?|final(\.tmp)?|log|(state|dense|decisions|width_multiple|report)\.json(\.tmp)?|report\.md(\.tmp)?)"
)


class RunFolder:
    """Reads and writes a run's folder. Only the main rank writes; all ranks may call every method."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path, self.state = path, {"format": FORMAT, **state}

    def check(self, overwrite: bool) -> dict[str, tuple[Any, Any]]:
        """Look at what the folder holds, and write nothing.

        Returns:
            Of the run that would be continued, the settings that differ, though only in rounding:
            (before, now) by name.

        Raises:
            ValueError: it holds another run, or something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"{self.path} exists and is not a run of ptl_fast; give another --output"
            )
        if not self._nearest().is_dir() or not os.access(self._nearest(), os.W_OK):
            raise ValueError(
                f"{self.path} cannot be written: {self._nearest()} is no folder that you may write"
                " to; give another --output"
            )
        if not self._is_run():
            if self.path.exists() and {file.name for file in self.path.iterdir()} - BEFORE_STATE:
                raise ValueError(
                    f"{self.path} exists and is not a run of ptl_fast; give another --output"
                )
            return {}
        if overwrite:
            return {}
        before, now = self._state_on_disk(), self.state
        differing = {}
        for name in before["config"].keys() | now["config"].keys():
            old, new = before["config"].get(name), now["config"].get(name)
            if old != new and name in ONLY_ROUNDING:
                differing[name] = (old, new)
            elif old != new:
                raise ValueError(
                    f"{self.path} holds another run: its --{name.replace('_', '-')} is {old}, now"
                    f" it is {new};"
                    " give another --output, or --overwrite to delete that run"
                )
        if {**before, "config": None} != {**now, "config": None}:
            raise ValueError(
                f"{self.path} holds a run on other data or weights; give another --output, or"
                " --overwrite"
            )
        return differing

    def open(self, overwrite: bool) -> None:
        """Create the folder, or continue the run that it holds; call ``check`` first.

        Raises:
            ValueError: another process is working in the folder.
        """
        if distributed.is_main():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            if overwrite and self._is_run():
                self._empty()
        distributed.barrier()
        if distributed.agree(self.read_json("state.json")) != self.state:
            self.write_json("state.json", self.state)

    def _empty(self) -> None:
        """Delete what a run writes, and nothing else. state.json first says so: an interrupted
        deletion leaves a run to delete.
        """
        write_atomically(
            self.path / "state.json",
            json.dumps({"format": FORMAT, "config": {}, "deleted": True}).encode(),
        )
        for file in [
            file
            for file in self.path.iterdir()
            if WRITTEN.fullmatch(file.name) and file.name != "state.json"
        ]:
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:  # a link goes, not what it points to
                file.unlink()

    def _state_on_disk(self) -> dict[str, Any]:
        try:
            state = json.loads((self.path / "state.json").read_text())
            return {**state, "config": dict(state["config"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}/state.json is damaged; give another --output, or --overwrite"
            ) from error

    def _lock(self) -> None:
        """Hold the folder for this process; the system lets go of it however the process ends."""
        self.lock = (self.path / LOCK).open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another process is working in {self.path}; wait for it, or give another --output"
            ) from error

    def _nearest(self) -> Path:
        """The folder, or the nearest one above it that is there."""
        return next(
            parent for parent in [self.path, *self.path.absolute().parents] if parent.exists()
        )

    def check_disk(self, needed_bytes: int) -> None:
        """Raise ValueError when less than ``needed_bytes`` are free where the folder is or will be."""
        existing = self._nearest()
        free = shutil.disk_usage(existing).free
        if free < needed_bytes:
            raise ValueError(
                f"{existing} has {free / 2**20:,.0f} MiB free, and the run needs about"
                f" {needed_bytes / 2**20:,.0f} MiB;"
                " free some space or give another --output"
            )

    def round(self, number: int) -> Path:
        return self.path / f"round-{number:02d}"

    def num_finished_rounds(self) -> int:
        """Rounds whose record is written, from the first on."""
        number = 0
        while (self.round(number + 1) / "record.json").exists():
            number += 1
        return distributed.agree(number)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The content of a JSON file, computed (on all ranks) and written by the main rank if it is
        not there.
        """
        content = distributed.agree(self.read_json(name))
        if content is None:
            content = distributed.agree(compute())
            self.write_json(name, content)
        return content

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, None where there is none.

        Raises:
            ValueError: it is damaged.
        """
        file = self.path / name
        try:
            return json.loads(file.read_text()) if file.exists() else None
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete it, or begin anew with --overwrite"
            ) from error

    def write_json(self, name: str, content: Any) -> None:
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        if distributed.is_main():
            write_atomically(self.path / name, text.encode())
        distributed.barrier()

    def write_tensors(self, name: str, tensors: "dict[str, Tensor]") -> None:
        """Write named tensors as a safetensors file."""
        from safetensors.torch import save

        if distributed.is_main():
            write_atomically(
                self.path / name,
                save({key: tensor.contiguous() for key, tensor in tensors.items()}),
            )
        distributed.barrier()

    def read_tensors(self, name: str) -> "dict[str, Tensor]":
        """Read what ``write_tensors`` wrote."""
        from safetensors.torch import load_file

        return load_file(self.path / name)

    def save_model(
        self, name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        """Save model and tokenizer as a Hugging Face folder that appears whole or not at all."""
        if distributed.is_main():
            folder = self.path / name
            temporary = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            _publish(temporary, folder)
        distributed.barrier()

    def publish_final(self, source: Path, card: str) -> None:
        """Make ``final/`` from a round's saved model (hard links where the file system can) and a
        model card.
        """
        if distributed.is_main():
            temporary = self.path / "final.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary, copy_function=_link_or_copy)
            (temporary / "README.md").write_text(card)
            _publish(temporary, self.path / "final")
        distributed.barrier()

    def put_aside(self, number: int, attempt: int) -> str:
        """Rename a round's folder, without its weights, to that of a failed attempt; return its
        name. Twice is no error.
        """
        folder = self.round(number)
        failed = self.path / f"{folder.name}.failed-{attempt}"
        if not distributed.agree(failed.exists()):
            light = {*folder.glob("*.json"), folder / "statistics.safetensors"}
            # with --anticipate, the next round was planned for this one's model
            self.remove(
                *(path for path in folder.glob("*") if path not in light), self.round(number + 1)
            )
            logs = [
                self.path / "log" / folder.name,
                *(self.path / "log").glob(f"{folder.name}-extra-*"),
            ]
            for log in distributed.agree(logs):  # each rename waits for all ranks
                self._rename(log, log.with_name(log.name.replace(folder.name, failed.name)))
            self._rename(folder, failed)
        return failed.name

    def keep_extension(self, number: int, extension: int) -> None:
        """Let what the last extension of recovery left be the round's; 0 is none. A second call
        does nothing.
        """
        if not extension:
            return
        folder = self.round(number)
        for stem, ending in (
            ("optimizer", ".safetensors"),
            ("next_statistics", ".safetensors"),
            ("model", ""),
        ):
            self._rename(folder / f"{stem}{suffix(extension)}{ending}", folder / f"{stem}{ending}")
        self.remove(*(path for path in folder.glob("*-extra-*") if path.suffix != ".json"))

    def _rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name, in place of what has it; one that is not there is no
        error.
        """
        if distributed.is_main() and old.exists():
            if new.is_dir():
                shutil.rmtree(new)
            old.rename(new)
            sync(new.parent)
        distributed.barrier()

    def remove(self, *paths: Path) -> None:
        """Delete files and folders; one that is not there is no error."""
        if distributed.is_main():
            for path in paths:
                if path.is_file():
                    path.unlink()
                shutil.rmtree(path, ignore_errors=True)
        distributed.barrier()

    def _is_run(self) -> bool:
        return (self.path / "state.json").is_file()


def _publish(temporary: Path, folder: Path) -> None:
    """Flush a finished folder to disk and give it its name."""
    readable = os.umask(0)
    os.umask(readable)
    for path in [*temporary.rglob("*"), temporary]:
        if path.is_file():  # safetensors writes files that nobody else may read
            path.chmod(0o666 & ~readable)
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync(folder.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

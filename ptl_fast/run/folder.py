"""A run's folder: the one place that names its files, and that says what is done.

state.json                       settings and data that the run belongs to
dense.json                       the original's evaluation
round-01/plan.json               what went, and why: with statistics.safetensors, which also holds
                                 the scores
round-01/pruned.json             evaluation before recovery, and recovered.json after it
round-01/recovery/               checkpoints inside recovery, while it lasts
round-01/recovery.json           the steps and tokens that recovery took, its checks of held-out
                                 text, its rewards
round-01/optimizer.safetensors   with --keep-optimizer-state: Adam's moments, until the next round
                                 has its own
round-01/model/                  the weights after recovery (newest rounds only)
round-01/seconds.json            of each stage
round-01/record.json             the finished round
decisions.json                   with --gate: what was measured and decided, in order
round-01/*-extra-1*              with --gate: the same of an extension of recovery; its model
                                 becomes model/ when the round passes
round-01.failed-1/               with --gate: a round that was undone, without weights
final/                           the result: an ordinary Hugging Face folder
report.json, report.md, log/     for people and tools; log/ is for TensorBoard
width_multiple.json              with --width-multiple auto: what was measured
"""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import publish, sync, write_atomically
from ptl_fast.config.checking import flag
from ptl_fast.config.config import RESUME_ROUNDING
from ptl_fast.run.stored import (
    JsonFile,
    ModelFolder,
    Stored,
    TensorFile,
    remove,
    temporary_folder,
    write_bytes,
)

FORMAT = 1
LOCK = ".lock"
BEFORE_STATE = {LOCK, "state.json.tmp"}
# What a run writes at the top of its folder, besides LOCK.
WRITTEN = re.compile(
    r"(round-\d{2,}(\.failed-\d+)?|final(\.tmp)?|log"
    r"|(state|dense|decisions|width_multiple|report)\.json(\.tmp)?|report\.md(\.tmp)?)"
)


class RoundFolder:
    """One round's files. ``extension`` counts how often the quality gate made its recovery longer;
    each extension has files of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = JsonFile(path / "plan.json")
        self.statistics = TensorFile(path / "statistics.safetensors")
        self.pruned = JsonFile(path / "pruned.json")
        self.seconds = JsonFile(path / "seconds.json")
        self.record = JsonFile(path / "record.json")

    def recovered(self, extension: int = 0) -> JsonFile:
        return JsonFile(self.path / f"recovered{_suffix(extension)}.json")

    def recovery(self, extension: int = 0) -> JsonFile:
        return JsonFile(self.path / f"recovery{_suffix(extension)}.json")

    def model(self, extension: int = 0) -> ModelFolder:
        return ModelFolder(self.path / f"model{_suffix(extension)}")

    def optimizer_state(self, extension: int = 0) -> TensorFile:
        return TensorFile(self.path / f"optimizer{_suffix(extension)}.safetensors")

    def next_statistics(self, extension: int = 0) -> TensorFile:
        """What this round's recovery took for the next round's scores."""
        return TensorFile(self.path / f"next_statistics{_suffix(extension)}.safetensors")

    def checkpoints(self, extension: int = 0) -> Path:
        return self.path / f"recovery{_suffix(extension)}"

    def name(self, extension: int = 0) -> str:
        """For messages and for the log's folder."""
        return f"{self.path.name}{_suffix(extension)}"

    def num_extensions(self) -> int:
        """How many extensions of recovery have ended."""
        return len(list(self.path.glob("recovery-extra-*.json")))

    def keep_extension(self, extension: int) -> None:
        """Let what the last extension left be the round's; 0 is none. A second call does nothing."""
        if not extension:
            return
        for last, own in (
            (self.optimizer_state(extension), self.optimizer_state()),
            (self.next_statistics(extension), self.next_statistics()),
            (self.model(extension), self.model()),
        ):
            _rename(last.path, own.path)
        remove(*(path for path in self.path.glob("*-extra-*") if path.suffix != ".json"))


class RunFolder:
    """A run's files. Only the main rank writes; all ranks may call every method."""

    def __init__(self, path: Path, state: dict[str, Any] | None = None) -> None:
        self.path, self.state = path, {"format": FORMAT, **(state or {})}
        self.state_file = JsonFile(path / "state.json")
        self.dense = JsonFile(path / "dense.json")
        self.decisions = JsonFile(path / "decisions.json")
        self.width_multiple = JsonFile(path / "width_multiple.json")
        self.report = JsonFile(path / "report.json")
        self.final = Stored(path / "final")
        self.log = path / "log"

    def round(self, number: int) -> RoundFolder:
        return RoundFolder(self.path / f"round-{number:02d}")

    def failed(self, number: int, attempt: int) -> RoundFolder:
        """Of a round that was undone."""
        return RoundFolder(self.path / f"round-{number:02d}.failed-{attempt}")

    def num_finished_rounds(self) -> int:
        """Rounds whose record is written, from the first on."""
        number = 0
        while self.round(number + 1).record.exists():
            number += 1
        return number

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
        return {} if overwrite else self._differences()

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        before, now = self._state_on_disk(), self.state
        differing = {}
        for name in before["config"].keys() | now["config"].keys():
            old, new = before["config"].get(name), now["config"].get(name)
            if old != new and name in RESUME_ROUNDING:
                differing[name] = (old, new)
            elif old != new:
                raise ValueError(
                    f"{self.path} holds another run: its {flag(name)} is {old}, now it is {new};"
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
        if distributed.agree(self.state_file.read()) != self.state:
            self.state_file.write(self.state)

    def _empty(self) -> None:
        """Delete what a run writes, and nothing else. state.json first says so: an interrupted
        deletion leaves a run to delete.
        """
        deleted = {"format": FORMAT, "config": {}, "deleted": True}
        write_atomically(self.state_file.path, json.dumps(deleted).encode())
        written = [file for file in self.path.iterdir() if WRITTEN.fullmatch(file.name)]
        for file in written:
            if file == self.state_file.path:
                continue
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:  # a link goes, not what it points to
                file.unlink()

    def _state_on_disk(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_file.path.read_text())
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
        above = [self.path, *self.path.absolute().parents]
        return next(parent for parent in above if parent.exists())

    def _is_run(self) -> bool:
        return self.state_file.path.is_file()

    def check_disk(self, needed_bytes: int) -> None:
        """Raise ValueError when less than ``needed_bytes`` are free where the folder is or will be."""
        existing = self._nearest()
        free = shutil.disk_usage(existing).free
        if free < needed_bytes:
            raise ValueError(
                f"{existing} has {free / 2**20:,.0f} MiB free, and the run needs about"
                f" {needed_bytes / 2**20:,.0f} MiB; free some space or give another --output"
            )

    def write_report(self, text: str) -> None:
        """The report for people."""
        write_bytes(self.path / "report.md", text.encode())

    def publish_final(self, source: ModelFolder, card: str) -> None:
        """Make ``final/`` from a round's saved model (hard links where the file system can) and a
        model card.
        """
        if distributed.is_main():
            temporary = temporary_folder(self.final.path)
            shutil.copytree(source.path, temporary, copy_function=_link_or_copy)
            (temporary / "README.md").write_text(card)
            publish(temporary, self.final.path)
        distributed.barrier()

    def put_aside(self, number: int, attempt: int) -> RoundFolder:
        """Rename a round's folder, without its weights, to that of a failed attempt. Twice is no
        error.
        """
        own, failed = self.round(number), self.failed(number, attempt)
        if not distributed.agree(failed.path.exists()):
            light = {*own.path.glob("*.json"), own.statistics.path}
            # with --anticipate, the next round was planned for this one's model
            heavy = [path for path in own.path.glob("*") if path not in light]
            remove(*heavy, self.round(number + 1).path)
            logs = [self.log / own.name(), *self.log.glob(f"{own.name()}-extra-*")]
            for log in distributed.agree(logs):  # each rename waits for all ranks
                _rename(log, log.with_name(log.name.replace(own.name(), failed.name())))
            _rename(own.path, failed.path)
        return failed

    def remove_old_weights(self, num_finished: int, keep_rounds: int) -> None:
        """Remove finished recoveries' checkpoints, and all but the newest rounds' weights and the
        newest optimizer state.
        """
        finished = [self.round(number) for number in range(1, num_finished + 1)]
        old = [each.model().path for each in finished[:-keep_rounds]]
        old += [each.optimizer_state().path for each in finished[:-1]]
        remove(*old, *(each.checkpoints() for each in finished))


def _suffix(extension: int) -> str:
    """What the names of an extension's files have in addition to those of the round's recovery."""
    return f"-extra-{extension}" if extension else ""


def _rename(old: Path, new: Path) -> None:
    """Give a file or folder another name, in place of what has it; one that is not there is no
    error.
    """
    if distributed.is_main() and old.exists():
        if new.is_dir():
            shutil.rmtree(new)
        old.rename(new)
        sync(new.parent)
    distributed.barrier()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

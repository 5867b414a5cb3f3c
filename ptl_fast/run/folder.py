"""A run's folder: its files have their names here, and their existence says which stages are done.

state.json                       the run's settings and hashes of its inputs, checked on resume
dense.json                       size and evaluation of the original model
round-01/plan.json               which neurons or layers were removed
round-01/statistics.safetensors  the statistics and scores that the plan was made from
round-01/pruned.json             evaluation before recovery
round-01/recovery/               checkpoints of recovery's training, until the round is finished
round-01/recovery.json           recovery's steps and tokens, checks of held-out text, rewards
round-01/next_statistics.safetensors   with --score-during-recovery: statistics for the next round
round-01/optimizer.safetensors   with --keep-optimizer-state: Adam moments, until the next round is
                                 finished
round-01/model/                  weights after recovery, of the newest --keep-rounds rounds
round-01/recovered.json          evaluation after recovery
round-01/seconds.json            wall-clock time of each stage
round-01/record.json             all of this in one file; written last: the round is finished
round-01/*-extra-1*              with --gate: the same files of an extension of recovery; its model
                                 becomes model/ when the round passes
round-01.failed-1/               with --gate: a round that was undone, without weights
decisions.json                   with --gate: the quality gate's measurements and decisions
final/                           the result, a Hugging Face model folder
report.json, report.md           the report, after every round
log/                             TensorBoard logs
width_multiple.json              with --width-multiple auto: the timings and the chosen multiple
"""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import publish, sync, temporary_folder, write_atomically
from ptl_fast.config.checking import flag
from ptl_fast.config.config import RESUME_ROUNDING
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.run.stored import (
    JsonFile,
    ModelFolder,
    Stored,
    TensorFile,
    remove,
    write_bytes,
)

# version of this layout, kept in state.json
FORMAT = 1
LOCK = ".lock"
# what a run killed before its first state.json leaves: such a folder counts as empty
BEFORE_STATE = {LOCK, "state.json.tmp"}
# What a run writes at the top of its folder, besides LOCK: --overwrite deletes these and nothing
# else, as the folder may hold files of the user's.
WRITTEN = re.compile(
    r"(round-\d{2,}(\.failed-\d+)?|final(\.tmp)?|log"
    r"|(state|dense|decisions|width_multiple|report)\.json(\.tmp)?|report\.md(\.tmp)?)"
)


class RoundFolder:
    """One round's files.

    Extension k of recovery, the k-th that the quality gate asked for, has its own files; extension
    0 is the round's own recovery.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = JsonFile(path / "plan.json")
        self.statistics = TensorFile(path / "statistics.safetensors")
        self.pruned = JsonFile(path / "pruned.json")
        self.seconds = JsonFile(path / "seconds.json")
        self.record = JsonFile(path / "record.json")

    def read_plan(self) -> PruningPlan:
        """The round's plan; raises ValueError if its file does not hold one."""
        try:
            # the main rank's: a network file system may show others a new file later
            return PruningPlan(**distributed.agree(self.plan.read()))
        except TypeError as error:
            raise ValueError(
                f"{self.plan.path} is damaged ({error}); delete it, or begin anew with --overwrite"
            ) from error

    def recovered(self, extension: int = 0) -> JsonFile:
        """The evaluation after training; empty if it diverged."""
        return JsonFile(self.path / f"recovered{_suffix(extension)}.json")

    def recovery(self, extension: int = 0) -> JsonFile:
        """What the training took: tokens, steps, held-out checks."""
        return JsonFile(self.path / f"recovery{_suffix(extension)}.json")

    def model(self, extension: int = 0) -> ModelFolder:
        """The weights after training."""
        return ModelFolder(self.path / f"model{_suffix(extension)}")

    def optimizer_state(self, extension: int = 0) -> TensorFile:
        """The Adam moments after training."""
        return TensorFile(self.path / f"optimizer{_suffix(extension)}.safetensors")

    def next_statistics(self, extension: int = 0) -> TensorFile:
        """Statistics for the next round's scores, collected during this round's recovery."""
        return TensorFile(self.path / f"next_statistics{_suffix(extension)}.safetensors")

    def checkpoints(self, extension: int = 0) -> Path:
        """The folder of the training's checkpoints."""
        return self.path / f"recovery{_suffix(extension)}"

    def name(self, extension: int = 0) -> str:
        """The name in messages, and of the TensorBoard folder."""
        return f"{self.path.name}{_suffix(extension)}"

    def num_extensions(self) -> int:
        """Number of extensions whose training has ended."""
        return len(list(self.path.glob("recovery-extra-*.json")))

    def keep_extension(self, extension: int) -> None:
        """Give the last extension's weights and tensors the round's own names; 0: no extension.

        Safe to repeat: what was renamed before a crash is skipped. The extensions' JSON files stay.
        """
        if not extension:
            return
        # all renames before the deletion below: a crash in between loses nothing
        for last, own in (
            (self.optimizer_state(extension), self.optimizer_state()),
            (self.next_statistics(extension), self.next_statistics()),
            (self.model(extension), self.model()),
        ):
            _rename(last.path, own.path)
        # checkpoints, and the tensors of earlier extensions
        remove(*(path for path in self.path.glob("*-extra-*") if path.suffix != ".json"))


class RunFolder:
    """A run's files.

    Only the main rank writes. All ranks must call the methods that write, which wait for it.

    Args:
        path: the folder; it need not exist.
        state: what must be equal in a resumed run: {"config": settings, "inputs": hashes}.
    """

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
        """The files of round ``number``, from 1."""
        return RoundFolder(self.path / f"round-{number:02d}")

    def failed(self, number: int, attempt: int) -> RoundFolder:
        """The files of an attempt at a round that the quality gate has undone."""
        return RoundFolder(self.path / f"round-{number:02d}.failed-{attempt}")

    def num_finished_rounds(self) -> int:
        """Number of rounds, from the first on, that have a record."""
        # a later round cannot have a record without the earlier ones
        number = 0
        while self.round(number + 1).record.exists():
            number += 1
        return number

    def check(self, overwrite: bool) -> dict[str, tuple[Any, Any]]:
        """Check that the folder is new or empty, or holds this run. Writes nothing.

        Args:
            overwrite: whether another run in the folder will be deleted, so that any run is fine.

        Returns:
            {setting: (value before, value now)} of the settings that differ from those of the run
            to be resumed; only such as change no more than rounding.

        Raises:
            ValueError: the folder holds another run, or other files, or cannot be written.
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
        """What ``check`` returns, or raises, for the run that state.json describes."""
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
        # the layout's version, the inputs' hashes, and the mark of an interrupted deletion
        if {**before, "config": None} != {**now, "config": None}:
            raise ValueError(
                f"{self.path} holds a run on other data or weights; give another --output, or"
                " --overwrite"
            )
        return differing

    def open(self, overwrite: bool) -> None:
        """Create and lock the folder, delete its run with ``overwrite``, and write state.json.

        Call ``check`` first. The lock is held until the process ends.

        Raises:
            ValueError: another process is working in the folder.
        """
        # locked before anything is deleted: another process may be working on the old run
        if distributed.is_main():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            if overwrite and self._is_run():
                self._empty()
        distributed.barrier()
        # a resumed run may differ in settings that change only rounding: the newest are kept
        if distributed.agree(self.state_file.read()) != self.state:
            self.state_file.write(self.state)

    def _empty(self) -> None:
        """Delete what a run writes, and nothing else.

        state.json is first replaced by one that says so. After a crash half-way, the folder is
        still a run, one that cannot be resumed, and --overwrite deletes the rest.
        """
        deleted = {"format": FORMAT, "config": {}, "deleted": True}
        write_atomically(self.state_file.path, json.dumps(deleted).encode())
        written = [file for file in self.path.iterdir() if WRITTEN.fullmatch(file.name)]
        for file in written:
            if file == self.state_file.path:
                continue
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:  # of a symbolic link, only the link
                file.unlink()

    def _state_on_disk(self) -> dict[str, Any]:
        """The content of state.json; raises ValueError if it is not what a run writes."""
        try:
            state = json.loads(self.state_file.path.read_text())
            return {**state, "config": dict(state["config"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}/state.json is damaged; give another --output, or --overwrite"
            ) from error

    def _lock(self) -> None:
        """Lock the folder for this process; raises ValueError if another one holds it."""
        # flock, not a file with a process id: the system releases it however the process ends. The
        # attribute keeps the file open
        self.lock = (self.path / LOCK).open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another process is working in {self.path}; wait for it, or give another --output"
            ) from error

    def _nearest(self) -> Path:
        """The folder, or its nearest parent that exists."""
        above = [self.path, *self.path.absolute().parents]
        return next(parent for parent in above if parent.exists())

    def _is_run(self) -> bool:
        """Whether the folder holds a run, of whatever settings."""
        return self.state_file.path.is_file()

    def check_disk(self, needed_bytes: int) -> None:
        """Raise ValueError if fewer than ``needed_bytes`` are free on the folder's file system."""
        existing = self._nearest()
        free = shutil.disk_usage(existing).free
        if free < needed_bytes:
            raise ValueError(
                f"{existing} has {free / 2**20:,.0f} MiB free, and the run needs about"
                f" {needed_bytes / 2**20:,.0f} MiB; free some space or give another --output"
            )

    def write_report(self, text: str) -> None:
        """Write report.md."""
        write_bytes(self.path / "report.md", text.encode())

    def publish_final(self, source: ModelFolder, card: str) -> None:
        """Make ``final/`` from a round's saved model and a model card, in one rename.

        Files are hard links if the file system supports them, so they take no space of their own.
        """
        if distributed.is_main():
            temporary = temporary_folder(self.final.path)
            shutil.copytree(source.path, temporary, copy_function=_link_or_copy)
            (temporary / "README.md").write_text(card)
            publish(temporary, self.final.path)
        distributed.barrier()

    def put_aside(self, number: int, attempt: int) -> RoundFolder:
        """Rename round-NN, without its weights, to round-NN.failed-K; return the new folder.

        Safe to repeat: the round's folder is renamed last, so after a crash half-way the deletions
        and the renames of logs are done again; once it has its new name nothing is done.
        """
        own, failed = self.round(number), self.failed(number, attempt)
        if not distributed.agree(failed.path.exists()):
            light = {*own.path.glob("*.json"), own.statistics.path}
            # with --anticipate the next round has a plan already, made for this round's model
            heavy = [path for path in own.path.glob("*") if path not in light]
            remove(*heavy, self.round(number + 1).path)
            logs = [self.log / own.name(), *self.log.glob(f"{own.name()}-extra-*")]
            # agreed, as every rename has a barrier: all ranks must loop over the same list
            for log in distributed.agree(logs):
                _rename(log, log.with_name(log.name.replace(own.name(), failed.name())))
            _rename(own.path, failed.path)
        return failed

    def remove_old_weights(self, num_finished: int, keep_rounds: int) -> None:
        """Delete what no later round needs: of the finished rounds, all checkpoints, the weights
        but those of the newest ``keep_rounds``, and the optimizer states but the newest.
        """
        finished = [self.round(number) for number in range(1, num_finished + 1)]
        # the newest weights always stay (keep_rounds is at least 1): the next round needs them
        old = [each.model().path for each in finished[:-keep_rounds]]
        old += [each.optimizer_state().path for each in finished[:-1]]
        remove(*old, *(each.checkpoints() for each in finished))


def _suffix(extension: int) -> str:
    """The suffix of an extension's file names; empty for the round's own recovery."""
    return f"-extra-{extension}" if extension else ""


def _rename(old: Path, new: Path) -> None:
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


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file; copy it if the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

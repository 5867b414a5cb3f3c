"""What is done with a run's folder as a whole; base/run_files.py names the files in it."""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ptl_fast.base import checksums, distributed, own_folder
from ptl_fast.base.atomic_files import nearest_folder
from ptl_fast.base.checksums import LIST
from ptl_fast.base.console import reason, say
from ptl_fast.base.run_files import BEFORE_STATE, COPIES, WRITTEN, RoundFolder, RunFiles
from ptl_fast.base.stored import (
    FilledFolder,
    ModelFolder,
    remove,
    rename,
    write_bytes,
    write_here,
)
from ptl_fast.config.checking import flag
from ptl_fast.config.config import FIELDS, RESUME_ROUNDING, WITHOUT
from ptl_fast.pruning.plan import PruningPlan

# version of this layout, kept in state.json
FORMAT = 1
# TensorBoard's logs of rounds, and their folders
LOG_OF_ROUND = re.compile(r"log(/round-[\d.a-z-]+(/events\.out\.tfevents\.[^/]+)?)?")
# fingerprints that older versions did not take
LATER = ("model_files", "teacher_files", "tasks", "deepspeed")


def read_plan(files: RoundFolder) -> PruningPlan:
    """A round's plan; raises ValueError if its file does not hold one."""
    try:
        # the main rank's: a network file system may show others a new file later
        return PruningPlan(**distributed.agree(files.plan.read()))
    except TypeError as error:
        raise ValueError(
            f"{files.plan.path} is damaged ({error}); delete it, or begin anew with --overwrite"
        ) from error


class RunFolder(RunFiles):
    """A run's folder: its files, and what is done with all of them together.

    Only the main rank writes. All ranks must call the methods that write, which wait for it.

    Args:
        path: the folder; it need not exist.
        state: what must be equal in a resumed run: {"config": settings, "inputs": hashes}.
    """

    def __init__(self, path: Path, state: dict[str, Any] | None = None) -> None:
        super().__init__(path)
        self.state = {"format": FORMAT, **(state or {})}
        if state is not None:
            self.state["run"] = _name(state)
        self._seen: bytes | None = None

    def settings(self) -> dict[str, Any]:
        """The settings that the folder's run began with; empty if there is no run, or they are
        lost, which is for ``check`` to judge.
        """
        checksums.hold(self.path, None)
        state = (self._kept_state() if self._is_run() else None) or {"config": {}}
        checksums.hold(self.path, state.get("run"))
        return state["config"]

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
        self._seen = self._list()
        if self.path.is_symlink() and not self.path.exists():
            raise ValueError(
                f"{self.path} is a link to {os.readlink(self.path)}, which is not there; make that"
                " folder, or give another --output"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"{self.path} exists and is not a run of ptl_fast; give another --output"
            )
        if not self._nearest().is_dir() or not os.access(self._nearest(), os.W_OK):
            raise ValueError(
                f"{self.path} cannot be written: {self._nearest()} is no folder that you may write"
                " to; give another --output"
            )
        # whose it is, state.json says
        checksums.hold(self.path, None)
        if not self._is_run():
            if self.path.exists() and self._has_rounds():
                raise ValueError(
                    f"{self.path} has rounds of a run, and its state.json, {COPIES}/ and {LIST} are"
                    " lost, without which nobody can say of which run: put one of them back, or"
                    " give another --output"
                )
            if self.path.exists() and not self._is_as_good_as_empty():
                raise ValueError(
                    f"{self.path} exists and is not a run of ptl_fast; give another --output"
                )
        differing = self._differences() if self._is_run() and not overwrite else {}
        self._hold()
        return differing

    def _hold(self) -> None:
        """What is in the folder counts from now on only if this run wrote it."""
        checksums.hold(self.path, self.state.get("run"))

    def _has_rounds(self) -> bool:
        return any(RoundFolder(path).plan.path.exists() for path in self.path.glob("round-*"))

    def _is_as_good_as_empty(self) -> bool:
        """Whether the folder holds no more than a run that was killed before its first state.json
        leaves, or one whose folder was deleted: TensorBoard goes on to write.
        """
        others = (file for file in self.path.iterdir() if file.name not in BEFORE_STATE)
        return all(
            LOG_OF_ROUND.fullmatch(file.relative_to(self.path).as_posix())
            for other in others
            for file in [other, *other.rglob("*")]
        )

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        """What ``check`` returns, or raises, for the run that state.json describes."""
        before, now = self._state_on_disk(), self.state
        # an older version gave it no name, and a name stays when a newer version has more settings
        now["run"] = before.setdefault("run", now.get("run"))
        differing = {}
        # the run does not read what its own settings leave out, whatever an older version kept
        unread = FIELDS.keys() - now["config"].keys()
        for name in (before["config"].keys() | now["config"].keys()) - unread:
            old, new = (each["config"].get(name, WITHOUT.get(name)) for each in (before, now))
            if old != new and name in RESUME_ROUNDING:
                differing[name] = (old, new)
            elif name not in FIELDS:
                raise ValueError(
                    f"{self.path} holds a run of another version of ptl_fast, with a setting"
                    f" {name} that this one lacks; install that version to go on with it, or give"
                    " another --output, or --overwrite to delete that run"
                )
            elif old != new:
                raise ValueError(
                    f"{self.path} holds another run: its {flag(name)} is {old}, now it is {new};"
                    f" give {flag(name)} {old} to go on with it, another --output, or --overwrite"
                    " to delete that run"
                )
        # the layout's version, the inputs' hashes, and the mark of an interrupted deletion
        before, now = _without_untaken(before, now), {**now, "config": None}
        if before != now:
            raise ValueError(
                f"{self.path} holds a run on other data or weights"
                f" ({', '.join(different(before, now))}); give another --output, or --overwrite"
            )
        return differing

    def open(self, overwrite: bool) -> None:
        """Create and lock the folder, delete its run with ``overwrite``, and write state.json.

        Call ``check`` first. The lock is held until the process ends.

        Raises:
            ValueError: another process is working in the folder, or has since ``check``: what this
                one has read of it until now no longer holds.
        """
        self._hold()
        # locked before anything is deleted: another process may be working on the old run
        if distributed.is_main():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            if self._seen not in (None, self._list()):
                raise ValueError(
                    f"another process has worked in {self.path} since this one began; give the"
                    " same command again to go on from there"
                )
            if overwrite and self._is_run():
                self._empty()
        distributed.barrier()
        # a resumed run may differ in settings that change only rounding: the newest are kept
        if distributed.agree(self._kept_state()) != self.state:
            self.state_file.write(self.state)

    def _list(self) -> bytes:
        """What is listed of the folder's own files: every finished round adds to it."""
        return self.checksums.read_bytes() if self.checksums.is_file() else b""

    def _empty(self) -> None:
        """Delete what a run writes, and nothing else.

        state.json is first replaced by one that says so. After a crash half-way, the folder is
        still a run, one that cannot be resumed, and --overwrite deletes the rest.
        """
        deleted = {"format": FORMAT, "config": {}, "deleted": True}
        for file in (self.state_file.path, self.state_file.copy.path):
            write_here(file, json.dumps(deleted).encode())
        written = [file for file in self.path.iterdir() if WRITTEN.fullmatch(file.name)]
        for file in written:
            if file in (self.state_file.path, self.checksums):
                continue
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:  # of a symbolic link, only the link
                file.unlink()
        # last: until then it says what state.json holds
        self.checksums.unlink(missing_ok=True)

    def _kept_state(self) -> dict[str, Any] | None:
        """The content of state.json, or of its copy; None if neither is what a run writes."""
        try:
            state = self.state_file.read()
            return {**state, "config": dict(state["config"])}
        except (ValueError, KeyError, TypeError):
            return None

    def _state_on_disk(self) -> dict[str, Any]:
        """The content of state.json. Where it is lost with its copy, that of this command, if the
        folder's checksums name the same run.

        Raises:
            ValueError: it is lost, and they do not.
        """
        state = self._kept_state()
        if state is not None:
            return state
        lost = (
            f"{self.state_file.path} and its copy, {self.state_file.copy.path}, are damaged or lost"
        )
        if self.state.get("run") in checksums.runs_in(self.path):
            say(f"{lost}: they are made again, as {LIST} says that this command's run is here.")
            return self.state
        raise ValueError(
            f"{lost}, and {LIST} does not say that this command's run, on its data and weights, is"
            " here; put one of them back, give the command that began the run, another --output, or"
            " --overwrite"
        )

    def _lock(self) -> None:
        """Lock the folder for this process; raises ValueError if another one holds it."""
        # flock, not a file with a process id: the system releases it however the process ends. The
        # attribute keeps the file open. A link's target is not touched, a pipe not waited for
        try:
            descriptor = os.open(
                self.lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
            )
        except OSError as error:
            raise ValueError(
                f"{self.lock_file} cannot be opened ({reason(error)}): delete it, or give another"
                " --output"
            ) from error
        self.lock = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another process is working in {self.path}; wait for it, or give another --output"
            ) from error
        own_folder.hold(self.lock_file, self.lock)

    def _nearest(self) -> Path:
        """The folder, or its nearest parent that exists."""
        return nearest_folder(self.path)

    def _is_run(self) -> bool:
        """Whether the folder holds a run, of whatever settings."""
        kept = self.state_file.path, self.state_file.copy.path
        return any(path.exists() for path in kept) or checksums.is_damaged(kept[0])

    def check_disk(self, needed_bytes: int) -> None:
        """Raise ValueError if fewer than ``needed_bytes`` are free on the folder's file system."""
        existing = self._nearest()
        free = shutil.disk_usage(existing).free
        if free < needed_bytes:
            raise ValueError(
                f"{existing} has {free / 2**20:,.0f} MiB free, and the run needs about"
                f" {needed_bytes / 2**20:,.0f} MiB; free some space, give another --output, or"
                " leave out the rounds' models (--keep-sizes false)"
            )

    def check_present(self) -> None:
        """Raise ValueError if somebody has deleted or moved the folder since it was opened: a run
        would write into a new one, and lack the rest at its end.
        """
        if distributed.is_main():
            own_folder.check()

    def write_report(self, text: str) -> None:
        """Write report.md."""
        write_bytes(self.report_text, text.encode())

    def write_page(self, text: str) -> None:
        """Write report.html."""
        write_bytes(self.page, text.encode())

    def write_sizes(self, text: str) -> None:
        """Write sizes/README.md."""
        write_bytes(self.sizes_text, text.encode())

    def publish_final(self, source: ModelFolder, card: str) -> None:
        """Make ``final/`` from a round's saved model and a model card, in one rename.

        A copy and no hard links: who writes into final/ must not change what a continued run reads.

        Raises:
            ValueError: the saved model is damaged, or the copy is not what was saved.
            StorageFailed: the copy does not fit on the disk.
        """
        if not source.exists():
            raise ValueError(f"{source.path} is missing or damaged, so there is no result")
        if distributed.agree(self.final.path.exists()):
            aside = self.changed_final()
            rename(self.final.path, aside)
            say(f"{self.final.path} was not as it was written: it is {aside} now, and made again.")

        self._publish(self.final, source, card)

    def publish_size(self, number: int, card: str) -> None:
        """Make ``sizes/round-NN`` from the round's saved model in the same way, if it is kept."""
        source, size = self.round(number).model(), self.size(number)
        if not size.exists() and source.exists():
            self._publish(size, source, card)

    def _publish(self, result: FilledFolder, source: ModelFolder, card: str) -> None:
        def write(folder: Path) -> None:
            shutil.copytree(source.path, folder, dirs_exist_ok=True)
            (folder / "README.md").write_text(card)

        files = [file for file in source.path.rglob("*") if file.is_file()]
        result.fill(write, sum(file.stat().st_size for file in files))

    def put_aside(self, number: int, attempt: int) -> RoundFolder:
        """Rename round-NN, without its weights, to round-NN.failed-K; return the new folder.

        Safe to repeat: the round's folder is renamed last, so after a crash half-way the deletions
        and the renames of logs are done again; once it has its new name nothing is done.
        """
        own, failed = self.round(number), self.failed(number, attempt)
        if not distributed.agree(failed.path.exists()):
            light = {*own.path.glob("*.json"), own.path / LIST, own.statistics.path}
            # with --anticipate the next round has a plan already, made for this round's model
            heavy = [path for path in own.path.glob("*") if path not in light]
            remove(*heavy, self.round(number + 1).path)
            logs = [self.log / own.name(), *self.log.glob(f"{own.name()}-extra-*")]
            # agreed, as every rename has a barrier: all ranks must loop over the same list
            for log in distributed.agree(logs):
                rename(log, log.with_name(log.name.replace(own.name(), failed.name())))
            rename(own.path, failed.path)
        return failed

    def remove_old_weights(self, num_finished: int, keep_rounds: int) -> None:
        """Delete what no later round needs: of the finished rounds, all checkpoints, the weights
        but those of the newest ``keep_rounds``, and the optimizer states but the newest.
        """
        finished = [self.round(number) for number in range(1, num_finished + 1)]
        # the newest weights always stay (keep_rounds is at least 1): the next round needs them
        old = [each.model().path for each in finished[:-keep_rounds]]
        old += [each.optimizer_state().path for each in finished[:-1]]
        old += [path for each in finished for path in (each.streamed.path, each.trained.path)]
        remove(*old, *(each.recovery_folder().path for each in finished))


def _name(state: dict[str, Any]) -> str:
    """A run's name: a hash of its settings, without those of rounding, and of its inputs."""
    config = {k: v for k, v in state.get("config", {}).items() if k not in RESUME_ROUNDING}
    return checksums.of_bytes(json.dumps({**state, "config": config}, sort_keys=True).encode())[:16]


def different(before: Any, now: Any, name: str = "state.json") -> list[str]:
    """The names of what differs in two nested dicts."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [name]
    names = dict.fromkeys([*before, *now])
    return [each for key in names for each in different(before.get(key), now.get(key), key)]


def _without_untaken(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A state.json's content without its settings, and with the fingerprints that it lacks as now.

    Older versions took none of .bin files and of models of the hub, and kept an empty list; and
    none of the files beside the weights.
    """
    before = {**before, "config": None}
    inputs, taken = before.get("inputs"), now.get("inputs")
    if isinstance(inputs, dict) and isinstance(taken, dict):
        later = [each for each in ("weights", "teacher") if inputs.get(each) == {}]
        later += [each for each in LATER if each in taken and each not in inputs]
        before["inputs"] = {**inputs, **{each: taken[each] for each in later}}
    return before

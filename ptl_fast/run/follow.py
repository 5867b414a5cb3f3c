"""Follow a run in progress from its folder alone: ``ptl-fast report RUN --follow``.

Only reads: which files a round has says what it is doing, its newest checkpoint how far training
is. The run need not be this process's child; whether a process on this machine works on it is told
by the lock on its folder. Imports neither torch nor transformers.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptl_fast.base import json_text, progress
from ptl_fast.base.console import say, tell_error
from ptl_fast.base.run_files import RoundFolder, RunFiles

LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class Status:
    """What a run's folder says that the run is doing."""

    doing: str
    """Such as "round 2: recovering, 40 of 83 steps saved"."""
    num_finished: int
    """Finished rounds."""
    is_finished: bool
    """Whether the result is there and the report names it."""


def main(arguments: list[str]) -> int:
    """Tell what a run does until it ends.

    Returns:
        The exit code: 0 if the run has finished, 1 if it has stopped before, 2 without a run.
    """
    parser = argparse.ArgumentParser(
        prog="ptl-fast report --follow", description="Follow a run from its folder."
    )
    parser.add_argument("run", type=Path, help="the run's folder, its --output")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    asked = parser.parse_args(arguments)
    files = RunFiles(asked.run)
    if not files.state_file.path.exists() and not is_running(files):
        tell_error(f"{asked.run} holds no run; give a run's --output")
        return 2
    try:
        with progress.shown():
            return follow(files, asked.every)
    except KeyboardInterrupt:
        return 130  # the run goes on


def follow(files: RunFiles, every: float) -> int:
    """Say each finished round once, and what is being done; return ``main``'s exit code."""
    told = 0
    while True:
        # asked first: a run that ends between the two questions is seen to have finished
        running, now = is_running(files), status(files)
        for number in range(told + 1, now.num_finished + 1):
            say(round_line(files.round(number)))
        told = max(told, now.num_finished)
        if not running:
            say(_ended(files, now))
            return 0 if now.is_finished else 1
        with progress.stage(now.doing):
            while is_running(files) and status(files) == now:
                time.sleep(every)


def status(files: RunFiles) -> Status:
    """What the folder says."""
    number = 0
    while files.round(number + 1).record.path.exists():
        number += 1
    if files.final.path.exists() and (_read(files.report.path) or {}).get("final"):
        return Status("done", number, True)
    if not files.dense.path.exists():
        return Status("evaluating the original model", number, False)
    current = files.round(number + 1)
    if not current.path.exists() and number:
        return Status(f"round {number} is finished", number, False)
    return Status(f"round {number + 1}: {_doing(current)}", number, False)


def round_line(files: RoundFolder) -> str:
    """A finished round in a line: its size, first metric and seconds."""
    record = _read(files.record.path) or {}
    seconds = sum(record.get("seconds", {}).values())
    experts = [f"{record['num_experts']} experts a layer"] if "num_experts" in record else []
    parts = [
        f"width {record.get('width')}",
        *experts,
        f"{record.get('num_parameters', 0):,} parameters",
    ]
    for name, key in (("pruned", "eval_pruned"), ("recovered", "eval")):
        for task, values in list((record.get(key) or {}).items())[:1]:
            parts += [f"{task} {metric} {value:.4f} {name}" for metric, value in _first(values)]
    return f"round {record.get('round')}: {', '.join(parts)}, {progress.duration(seconds)}"


def is_running(files: RunFiles) -> bool:
    """Whether a process on this machine holds the folder's lock.

    Read from /proc/locks: taking the lock to see whether it is free would refuse a run that
    starts in this moment.
    """
    try:
        inode = files.lock_file.stat().st_ino
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return False
    return any(
        fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode)
        for fields in map(str.split, lines)
        # a line of one that waits has an arrow, and is no holder
        if len(fields) > 5 and fields[1] != "->"
    )


def _doing(files: RoundFolder) -> str:
    """What an unfinished round is doing: what its next missing file is the result of."""
    # of the newest extension of recovery that the quality gate has asked for
    extension = files.num_extensions()
    if not files.plan.path.exists():
        return "scoring"
    if not files.pruned.path.exists():
        return "pruning and evaluating"
    if not files.recovery(extension).path.exists():
        return f"recovering{_steps(files.recovery_folder(extension).path)}"
    if not files.recovered(extension).path.exists():
        return "evaluating"
    return "deciding"


def _steps(folder: Path) -> str:
    """How far training is, according to its newest checkpoint; empty if there is none."""
    states = [_read(path) for path in folder.glob("checkpoint-*/trainer_state.json")]
    known = [(each["global_step"], each["max_steps"]) for each in states if each]
    return ", {} of {} steps saved".format(*max(known)) if known else ""


def _first(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return iter(list(values.items())[:1])


def _read(path: Path) -> Any:
    """A JSON file's content; None if it is missing, or is being written just now."""
    try:
        return json_text.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _ended(files: RunFiles, now: Status) -> str:
    if now.is_finished:
        return f"finished: {files.final.path}; report: {files.report_text}"
    return (
        f"no process on this machine works on {files.path}; it stopped at: {now.doing}."
        " The same command goes on from there."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

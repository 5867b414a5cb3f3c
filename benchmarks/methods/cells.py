"""Run the cells of benchmarks.methods.compare, each in a process and a folder of its own, and read
what they measured.

A cell that is finished is not run again. One that was interrupted goes on where it was. One that
fails leaves its output in OUTPUT/NAME.log and does not stop the others.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import processor_name, short_commit
from benchmarks.harness.results import write_json
from benchmarks.methods.grid import Cell
from benchmarks.methods.summaries import FAILED, FINISHED

Row = dict[str, Any]
# Cells are forks of a process that has imported these. Importing them takes 8 s, a fifth of the
# time of a cell with the bundled model.
PRELOADED = [
    "ptl_fast.run.loop",
    "ptl_fast.evaluation.tasks",
    "ptl_fast.recovery.registry",
    "ptl_fast.baselines.slicegpt",
    "lm_eval.models.huggingface",
]
ROUND_FIELDS = (
    "round",
    "kind",
    "width",
    "num_layers",
    "num_parameters",
    "recovery_tokens",
    "seconds",
    "eval_pruned",
    "eval",
)


def run_cells(
    cells: Sequence[Cell], output: Path, jobs: int, on_row: Callable[[str, Row], None]
) -> None:
    """Run the cells, ``jobs`` at a time, and call ``on_row`` with each name and row. Rows of failed
    cells say why.
    """
    output.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(jobs)
    waiting = {pool.submit(run_cell, cell, output, jobs): cell.name for cell in cells}
    try:
        for future in as_completed(waiting):
            on_row(waiting[future], future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def run_cell(cell: Cell, output: Path, jobs: int) -> Row:
    """Run or continue one cell and return its row."""
    file, log = output / f"{cell.name}.json", output / f"{cell.name}.log"
    before = json.loads(file.read_text())["commits"] if file.is_file() else []
    commits = list(dict.fromkeys([*before, short_commit()]))
    write_json(file, {"settings": cell.settings, "commits": commits})
    num_threads = max(1, (os.cpu_count() or 1) // jobs)
    code = run_in_fork(cell.settings, output / cell.name, log, num_threads)
    row = finished_row(cell, output)
    if code == 0 and row is not None:
        return row
    # the last line of the log is the reason, as ptl_fast prints it
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return {
        "settings": cell.settings,
        "status": FAILED,
        "error": (lines or [f"exit code {code}"])[-1][-500:],
    }


def run_in_fork(settings: dict[str, Any], folder: Path, log: Path, num_threads: int) -> int:
    """Compress in a process of its own that prints into ``log``, and return its exit code; negative
    for a signal.
    """
    # not "fork": a fork of this process, with its threads, could deadlock
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(
        target=compress_cell, args=(settings, folder, log, num_threads), daemon=True
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def compress_cell(settings: dict[str, Any], folder: Path, log: Path, num_threads: int) -> None:
    """What the process does: exit code 2 and one line for settings or data that do not fit."""
    # the file descriptors, not sys.stdout: libraries in C++ print too
    with log.open("w") as stream:
        for standard in (1, 2):
            os.dup2(stream.fileno(), standard)
    import torch

    from ptl_fast import compress
    from ptl_fast.base.console import quiet_libraries

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", num_threads)))
    quiet_libraries()
    try:
        compress(**settings, output=str(folder))
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def finished_row(cell: Cell, output: Path) -> Row | None:
    """What a finished cell measured; None where it is not finished."""
    report = output / cell.name / "report.json"
    content: Row = json.loads(report.read_text()) if report.is_file() else {"final": None}
    if content["final"] is None:
        return None
    rounds = [{name: record[name] for name in ROUND_FIELDS} for record in content["rounds"]]
    return {
        "settings": cell.settings,
        "status": FINISHED,
        "commits": json.loads((output / f"{cell.name}.json").read_text())["commits"],
        "dense": content["dense"],
        "rounds": rounds,
        "final": content["final"],
    }


def environment_of_cells(output: Path, names: Iterable[str], jobs: int) -> dict[str, Any]:
    """The machine, and the versions in the report of one of the cells."""
    reports = (output / name / "report.json" for name in names)
    versions: dict[str, Any] = next(
        (json.loads(report.read_text())["environment"] for report in reports if report.is_file()),
        {},
    )
    return {**versions, "device": processor_name(), "cores": os.cpu_count(), "jobs": jobs}

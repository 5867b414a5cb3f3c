"""How far is the dry run's estimate from a run on this machine, stage by stage?

    python -m benchmarks.scale.planner_error --json FILE -- --model DIR --data FILE ...

Behind -- stand the settings of ``ptl_fast.compress``, with --device cpu and without --output. The
run is a process of its own. Each of its stages has its seconds by the clock and those of the
processor, which other processes do not lengthen, and the most memory that was resident in it (the
kernel's mark is set back at each beginning). Beside them stands what ``run.stage_costs`` said
before, from the settings and the model's config. Linux only.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from benchmarks.harness.environment import environment
from benchmarks.harness.memory import peak_gib
from benchmarks.harness.results import write_json
from ptl_fast.run import dry_run, stage_costs, this_machine
from ptl_fast.run.rounds import make_schedule
from ptl_fast.run.start import parse

OUTSIDE, TOGETHER = "start and end", "together"
PARTS = {
    stage_costs.LOADING: ("loading libraries", "reading the model and the data"),
    stage_costs.SCORING: ("scoring",),
    stage_costs.PRUNING: ("pruning",),
    stage_costs.RECOVERY: ("recovering",),
    stage_costs.SAVING: ("saving", "writing the result"),
}
"""The stages that progress tells, by those of the estimate."""


class Stages:
    """What the stages of this process took, by the name that progress tells."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[str, float]] = {}
        self.depth = 0

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what happens inside to a stage; inside another stage, it is that one's."""
        self.depth += 1
        start = perf_counter(), process_time()
        if self.depth == 1:
            forget_peak()
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self._add(name, perf_counter() - start[0], process_time() - start[1])

    def _add(self, name: str, wall: float, processor: float) -> None:
        own = self.taken.setdefault(name, {"wall": 0.0, "processor": 0.0, "peak_gib": 0.0})
        own["wall"] += wall
        own["processor"] += processor
        own["peak_gib"] = max(own["peak_gib"], peak_gib())


def forget_peak() -> None:
    """Let ``peak_gib`` begin with what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def child(options: argparse.Namespace) -> None:
    """Run the command, and write what its stages took."""
    from ptl_fast.base import progress

    stages, plain = Stages(), progress.stage

    @contextlib.contextmanager
    def measured(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        with stages.timed(name.rpartition(": ")[2]), plain(name, *args, **kwargs):
            yield

    progress.stage = measured
    from ptl_fast.run.command import main as compress

    code = compress(options.settings)
    if code:
        raise SystemExit(code)
    inside = sum(each["processor"] for each in stages.taken.values())
    write_json(options.child, {**stages.taken, OUTSIDE: {"processor": process_time() - inside}})


def estimated(settings: list[str]) -> list[stage_costs.Cost]:
    """What the dry run says of these settings on this machine."""
    from ptl_fast.model.loading import load_config

    config = parse(settings)
    name, multiple = config.model.model, config.prune.width_multiple
    assert name is not None
    if multiple == "auto":
        raise SystemExit("give --width-multiple: on a CPU, auto follows from a trial")
    original = load_config(name, config.model)
    schedule = make_schedule(config, original)
    return stage_costs.of_run(dry_run.costed(original, config, schedule))


def compared(
    costs: list[stage_costs.Cost], taken: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """By stage of the estimate, and of them together, both."""
    rows: dict[str, dict[str, float]] = {}
    for cost in costs:
        own = [taken[name] for name in PARTS[cost.stage] if name in taken]
        rows[cost.stage] = {
            "wall": sum(each["wall"] for each in own),
            "processor": sum(each["processor"] for each in own),
            "peak_gib": max(each["peak_gib"] for each in own),
            "estimated_processor": cost.seconds or 0.0,
            "estimated_peak_gib": cost.device_bytes / 2**30,
        }
    together = {
        name: (max if "gib" in name else sum)(each[name] for each in rows.values())
        for name in next(iter(rows.values()))
    }
    return {**rows, TOGETHER: together}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="", help="of the run, in the table")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--taken", type=Path, help="what a run of these settings has taken")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="+")
    options = parser.parse_args(arguments)
    if options.child:
        child(options)
        return
    costs = estimated(options.settings)
    taken = json.loads(options.taken.read_text()) if options.taken else _run(options.settings)
    result = {
        "environment": environment("cpu"),
        "name": options.name,
        # without this machine's folders
        "settings": [Path(each).name for each in options.settings],
        "device": this_machine.cpu().name,
        "stages": compared(costs, taken),
        "taken": taken,
    }
    print(json.dumps(result["stages"], indent=1))
    if options.json:
        write_json(options.json, result)


def _run(settings: list[str]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "taken.json"
        command = [sys.executable, "-m", __spec__.name, "--child", str(file), "--"]
        subprocess.run([*command, *settings, "--output", f"{folder}/run"], check=True)
        return json.loads(file.read_text())


if __name__ == "__main__":
    main()

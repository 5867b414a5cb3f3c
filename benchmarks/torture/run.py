"""Do to runs what happens to runs, and write what was lost.

    python -m benchmarks.torture.run [--only PART ...] [--seconds N] [--inputs N] [--json FILE]

Every outcome must be the undisturbed result or one line of ours. Two parts run side by side, on two
cores. The rows are kept in a file, and a part that is run again replaces its own row.
docs/reliability.md shows them: python -m benchmarks.documents.reliability_table writes it from
them.
"""

import argparse
import collections
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import ROOT, short_commit
from benchmarks.harness.results import write_json
from benchmarks.torture.parts import LINE, PARTS, Bench, Case
from benchmarks.torture.trial import Inputs

LANES = 2  # parts that run side by side: their runs are processes of one thread each
FILE = ROOT / "benchmarks" / "results" / "torture_cpu.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=5400,
        help="for all parts together; each gets its share of it",
    )
    parser.add_argument("--inputs", type=int, default=2500, help="at most, of each kind of input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=FILE, help="where the rows are kept")
    options = parser.parse_args(arguments)
    # imported here, because it imports torch
    from benchmarks.harness.environment import environment

    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(LANES) as lanes:
        (Path(folder) / "inputs").mkdir()
        inputs = Inputs.make(Path(folder) / "inputs")
        running = {}
        # the longest first, so that both lanes end at about the same time
        for name, seconds in sorted(_times(options).items(), key=lambda each: -each[1]):
            work = Path(folder) / name / "work"
            work.mkdir(parents=True)
            bench = Bench(inputs, work, options.seed, options.inputs)
            running[lanes.submit(row, name, bench, seconds)] = name
        for ended in as_completed(running):
            rows[running[ended]] = ended.result()
            write_json(options.json, {"environment": environment("cpu"), "rows": rows})
    lost = {name: rows[name]["lost"] for name in options.only if rows[name]["lost"]}
    if lost:
        raise SystemExit(f"lost: {json.dumps(lost, indent=1)}")


def _times(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part that was asked for: what both lanes have, in proportion to the parts'
    shares. A part alone has no more than its lane has.
    """
    total = sum(PARTS[name].share for name in options.only)
    return {
        name: options.seconds * min(1.0, LANES * PARTS[name].share / total) for name in options.only
    }


def row(name: str, bench: Bench, seconds: float) -> dict[str, Any]:
    """What a part's cases came to, as many as fit into so many seconds, but one at least."""
    from tqdm import tqdm

    part, start = PARTS[name], time.monotonic()
    done: list[Case] = []
    whole = True
    for case in tqdm(part.cases(bench), desc=name):
        done.append(case)
        if time.monotonic() - start > seconds:
            whole = False
            break
    return {
        "outcomes": collections.Counter(
            kind_of(case) for case in done if kind_of(case) in part.allowed
        ),
        "lost": [[case.label, case.outcome] for case in done if kind_of(case) not in part.allowed],
        "num_cases": len(done),
        "whole": whole,
        "seed": bench.seed,
        "commit": short_commit(),
        "seconds": round(time.monotonic() - start),
    }


def kind_of(case: Case) -> str:
    """The case's outcome without the line that was told."""
    return LINE if case.outcome.startswith(f"{LINE}: ") else case.outcome


if __name__ == "__main__":
    main()

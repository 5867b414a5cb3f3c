"""Pruning methods on equal terms: same model, data, recovery tokens and evaluation; several seeds; mean and spread.

    python -m benchmarks.compare --output runs/compare --json benchmarks/results/demo.json

Each cell (method, seed) is a run of ptl_fast in a folder of its own, so an interrupted grid goes on where it was.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from ptl_fast import report
from ptl_fast.compress import compress, quiet_libraries

# What each method changes in the demo's settings. Every method gets the same recovery tokens and the same learning rate.
METHODS: dict[str, dict[str, Any]] = {
    "PTL (our default)": {},
    "Prune-Once": {"rounds": 1},
    "random neurons, same schedule": {"scorer": "random"},
    "dense, same extra training": {"keep": 1.0, "rounds": 1},
    "PTL, equal shares": {"recovery_split": "equal"},
}


def run_cell(method: str, seed: int, output: Path) -> dict[str, Any]:
    """Run or continue one cell; return its report."""
    folder = output / f"{''.join(letter if letter.isalnum() else '-' for letter in method)}-seed-{seed}"
    return compress(**METHODS[method], seed=seed, output=str(folder))


def summarize(reports: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a method: sizes relative to dense, and the leading metric's mean, lowest and highest over the seeds."""
    rows = []
    for method, cells in reports.items():
        task, metric = report.leading_metric(cells[0]["dense"])
        finals = [100 * cell["final"]["eval"][task][metric] for cell in cells]
        pruned = [100 * cell["rounds"][-1]["eval_pruned"][task][metric] for cell in cells]
        dense, final = cells[0]["dense"], cells[0]["final"]
        rows.append(
            {
                "method": method,
                "width": final["width"],
                "parameters": final["num_parameters"] / dense["num_parameters"],
                "flops_per_token": final["flops_per_token"] / dense["flops_per_token"],
                "recovery_tokens": sum(record["recovery_tokens"] for record in cells[0]["rounds"]),
                "dense": 100 * dense["eval"][task][metric],
                "before_last_recovery": statistics.mean(pruned),
                "accuracy": statistics.mean(finals),
                "lowest": min(finals),
                "highest": max(finals),
                "seeds": finals,
            }
        )
    return rows


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README."""
    lines = [
        "| method | FFN width | parameters | FLOPs/token | accuracy %, mean (lowest to highest) |",
        "|---|--:|--:|--:|--:|",
        f"| dense | 768 | 100% | 100% | {rows[0]['dense']:.1f} |",
    ]
    for row in rows:
        lines.append(
            f"| {row['method']} | {row['width']} | {row['parameters']:.1%} | {row['flops_per_token']:.1%}"
            f" | {row['accuracy']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="folder of the runs")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="default: all")
    arguments = parser.parse_args()
    quiet_libraries()
    reports = {
        method: [run_cell(method, seed, arguments.output) for seed in range(arguments.seeds)] for method in arguments.methods
    }
    rows = summarize(reports)
    print(to_markdown(rows))
    if arguments.json:
        environment = next(iter(reports.values()))[0]["environment"]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

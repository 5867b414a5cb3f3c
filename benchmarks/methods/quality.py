"""Collect the runs of benchmarks/gpu/quality.sh into one file: the size that each method leaves of
the model, and its evaluation.

    python -m benchmarks.methods.quality RUNS --json FILE

RUNS holds a run folder for each method. A run that is not finished has a row that says so.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.harness.markdown import MISSING, Table, to_markdown
from benchmarks.harness.results import MEASURED, not_measured, write_json

SIZES = ("num_parameters", "num_layers", "width", "flops_per_token")


def collect(runs: Path) -> dict[str, Any]:
    """The environment of the runs, the dense model's size and evaluation, and a row for each
    method.
    """
    # in the order in which they were run
    folders = sorted(
        (folder for folder in runs.iterdir() if folder.is_dir()),
        key=lambda folder: folder.stat().st_ctime,
    )
    reports = {folder.name: _report(folder) for folder in folders}
    # runs that were killed before their first round have no report
    known = [report for report in reports.values() if report is not None]
    if not known:
        raise SystemExit(f"{runs} holds no run that finished a round")
    dense = known[0]["dense"]  # every run measured the same dense model
    return {
        "environment": known[0]["environment"],
        "model": Path(known[0]["config"]["model"]).name,
        "dense": {**{name: dense[name] for name in SIZES}, "eval": dense["eval"]},
        "rows": [row(name, report) for name, report in reports.items()],
    }


def row(method: str, report: dict[str, Any] | None) -> dict[str, Any]:
    """One method: sizes against the dense model's, and the evaluation at the end and before the
    last recovery.
    """
    if report is None or report["final"] is None:
        return {"method": method, "status": not_measured("the run is not finished")}
    dense, final, rounds = report["dense"], report["final"], report["rounds"]
    return {
        "method": method,
        "status": MEASURED,
        **{name: final[name] for name in SIZES},
        "parameters": final["num_parameters"] / dense["num_parameters"],
        "flops": final["flops_per_token"] / dense["flops_per_token"],
        "num_rounds": len(rounds),
        "recovery_tokens": sum(record["recovery_tokens"] for record in rounds),
        "seconds": sum(sum(record["seconds"].values()) for record in rounds),
        "eval_before_last_recovery": rounds[-1]["eval_pruned"],
        "eval": final["eval"],
    }


def _report(folder: Path) -> dict[str, Any] | None:
    file = folder / "report.json"
    return json.loads(file.read_text()) if file.is_file() else None


def table(results: dict[str, Any]) -> Table:
    """A row for each method, with a column for each metric."""
    metrics = [
        (task, metric) for task, values in results["dense"]["eval"].items() for metric in values
    ]
    header = [
        "method",
        "parameters",
        "FLOPs/token",
        "recovery tokens",
        *(f"{task} {metric}" for task, metric in metrics),
    ]
    lines = [header]
    lines.append(
        [
            "dense",
            "100%",
            "100%",
            "0",
            *(f"{results['dense']['eval'][task][metric]:.4g}" for task, metric in metrics),
        ]
    )
    for each in results["rows"]:
        if each["status"] != MEASURED:
            lines.append([each["method"], *[MISSING] * (len(header) - 1)])
            continue
        values = [f"{each['eval'][task][metric]:.4g}" for task, metric in metrics]
        lines.append(
            [
                each["method"],
                f"{each['parameters']:.1%}",
                f"{each['flops']:.1%}",
                f"{each['recovery_tokens']}",
                *values,
            ]
        )
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder with a run folder for each method")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args(arguments)
    results = collect(options.runs)
    print(to_markdown(table(results)))
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

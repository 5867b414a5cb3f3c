"""Try to compress a tiny random model of every causal language model type of transformers, and
write what became of each.

    python -m benchmarks.families.run [TYPE ...] [--json FILE] [--experts-again]

docs/models.md shows the rows: python -m benchmarks.documents.models_table writes it from them.
"""

import argparse
import dataclasses
import json
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.families import configs
from benchmarks.harness.environment import ROOT
from benchmarks.harness.results import write_json
from ptl_fast.base.console import quiet_libraries

UNTRIED = "no tiny model: "
FILE = ROOT / "benchmarks" / "results" / "models_cpu.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="only these (default: all)")
    parser.add_argument("--json", type=Path, default=FILE, help="where to write the rows")
    parser.add_argument(
        "--experts-again",
        action="store_true",
        help="remove experts alone, and put what became of it into the rows that FILE has",
    )
    options = parser.parse_args(arguments)
    quiet_libraries()
    warnings.simplefilter("ignore")
    # imported here, because they import torch and transformers
    from tqdm import tqdm

    from benchmarks.families import checks
    from benchmarks.harness.environment import environment

    every = [
        each for each in configs.every() if not options.types or each.model_type in options.types
    ]
    start = time.perf_counter()
    if options.experts_again:
        results = json.loads(options.json.read_text())
        rows = _experts_again(results["rows"], every)
        spent = {"environment": environment("cpu"), "seconds": round(time.perf_counter() - start)}
        write_json(options.json, {**results, "experts": spent, "rows": rows})
        return _end(rows, options.json)
    rows = [dataclasses.asdict(checks.check(tiny)) for tiny in tqdm(every, desc="families")]
    seconds = round(time.perf_counter() - start)
    write_json(options.json, {"environment": environment("cpu"), "seconds": seconds, "rows": rows})
    return _end(rows, options.json)


def _experts_again(rows: list[dict[str, Any]], every: list[configs.Tiny]) -> list[dict[str, Any]]:
    """The rows, with what became of the experts of these configurations."""
    from tqdm import tqdm

    from benchmarks.families import checks

    found = {}
    for tiny in tqdm(every, desc="families with experts"):
        tried = next((row for row in rows if row["label"] == tiny.label), None)
        if tried is not None and not tried["neurons"].startswith(UNTRIED):
            found[tiny.label] = checks.check_experts(tiny, generates=not tried["generation"])
    return [{**row, "experts": found.get(row["label"], row.get("experts", ""))} for row in rows]


def _end(rows: list[dict[str, Any]], file: Path) -> None:
    """Exit with an error if a row is wrong."""
    from benchmarks.families import checks

    wrong = [row["label"] for row in rows if checks.Outcome(**row).wrong]
    if wrong:
        raise SystemExit(f"wrong: {', '.join(wrong)}; {file} says how")


if __name__ == "__main__":
    main()

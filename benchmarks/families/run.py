"""Try to compress a tiny random model of every causal language model type of transformers, and
write what became of each.

    python -m benchmarks.families.run [TYPE ...] [--json FILE]

docs/models.md shows the rows: python -m benchmarks.documents.models_table writes it from them.
"""

import argparse
import dataclasses
import time
import warnings
from pathlib import Path

from benchmarks.families import configs
from benchmarks.harness.environment import ROOT
from benchmarks.harness.results import write_json
from ptl_fast.base.console import quiet_libraries

FILE = ROOT / "benchmarks" / "results" / "models_cpu.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="only these (default: all)")
    parser.add_argument("--json", type=Path, default=FILE, help="where to write the rows")
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
    rows = [dataclasses.asdict(checks.check(tiny)) for tiny in tqdm(every, desc="families")]
    seconds = round(time.perf_counter() - start)
    write_json(options.json, {"environment": environment("cpu"), "seconds": seconds, "rows": rows})
    wrong = [row["label"] for row in rows if checks.Outcome(**row).wrong]
    if wrong:
        raise SystemExit(f"wrong: {', '.join(wrong)}; {options.json} says how")


if __name__ == "__main__":
    main()

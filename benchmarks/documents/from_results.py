"""Raw results -> a document's tables: finding the files, and the command line that all writers
share.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.markdown import Makers, fill
from benchmarks.harness.results import write_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DEVICE_TYPES = {"cuda": "GPU", "cpu": "CPU"}
Results = list[dict[str, Any]]


def load(folder: Path, prefix: str) -> Results:
    """Every file of results with this prefix, by name, each with its name under "file"."""
    return [
        {**json.loads(path.read_text()), "file": path.name}
        for path in sorted(folder.glob(f"{prefix}_*.json"))
    ]


def run(
    arguments: list[str] | None,
    description: str | None,
    document: Path,
    tables: Callable[[Path], Makers],
) -> None:
    """The command line of a document's tables: write them, or check that they are what the results
    give.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if the document differs"
    )
    parser.add_argument("--document", type=Path, default=document)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    before = options.document.read_text()
    after = fill(before, tables(options.results))
    if options.check and before != after:
        raise SystemExit(
            f"{options.document} is not what {options.results} gives; run the same command without"
            " --check"
        )
    if before != after:
        write_text(options.document, after)

"""What the writers of documents share: raw results from files, and the command line that writes a
document's tables or checks them.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import ROOT
from benchmarks.harness.markdown import TableMakers, fill_tables
from benchmarks.harness.results import write_text

RESULTS = ROOT / "benchmarks" / "results"
DEVICE_TYPES = {"cuda": "GPU", "cpu": "CPU"}
Results = list[dict[str, Any]]
"""Contents of files of results, by name."""


def load(folder: Path, prefix: str) -> Results:
    """Every file of results with this prefix, each with its name under "file"."""
    return [
        {**json.loads(path.read_text()), "file": path.name}
        for path in sorted(folder.glob(f"{prefix}_*.json"))
    ]


def of_device_type(results: Results, device_type: str) -> Results:
    """Those that were measured on a kind of device, cpu or cuda."""
    return [each for each in results if each["environment"]["device_type"] == device_type]


def link(results: dict[str, Any]) -> str:
    """A link from a document to the file of these results."""
    return f"[{results['file']}](../benchmarks/results/{results['file']})"


def commit_cell(environment: dict[str, Any]) -> str:
    """The commit that was measured, in short."""
    commit = environment.get("commit") or ""
    return f"{commit[:9]}{' and changes' if environment.get('dirty') else ''}"


def write_tables(
    arguments: list[str] | None,
    description: str | None,
    document: Path,
    make_tables: Callable[[Path], TableMakers],
    num_names: Mapping[str, int] | None = None,
) -> None:
    """The command line of a document's tables: write them, or check that they are what the results
    give.

    Args:
        make_tables: gets the folder of the results.
        num_names: of some tables, how many of the first columns name a row (``fill_tables``).
    """
    parser = document_parser(description, document)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw results")
    options = parser.parse_args(arguments)
    text = fill_tables(options.document.read_text(), make_tables(options.results), num_names)
    write_or_check(options, text)


def document_parser(description: str | None, document: Path) -> argparse.ArgumentParser:
    """A parser with --check and --document."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if the document differs"
    )
    parser.add_argument("--document", type=Path, default=document)
    return parser


def write_or_check(options: argparse.Namespace, text: str) -> None:
    """Write the document if its text differs; with --check, end the program instead."""
    if options.document.read_text() == text:
        return
    if options.check:
        raise SystemExit(
            f"{options.document} is not what the results give; run the same command without --check"
        )
    write_text(options.document, text)

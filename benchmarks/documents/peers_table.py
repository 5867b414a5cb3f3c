"""Write the table of docs/peers.md on finer searches, from the rows of
benchmarks.scoring.bench_local_search (local_search_*.json in benchmarks/results).

    python -m benchmarks.documents.peers_table [--check]

The section on whole runs is written by ``python -m benchmarks.documents.methods_table --json
benchmarks/results/compare_demo_peers.json --document docs/peers.md``.
"""

import functools
from pathlib import Path
from typing import Any

from benchmarks.documents.document import ROOT, Results, link, load, write_tables
from benchmarks.harness.markdown import Table, TableMakers

DOCUMENT = ROOT / "docs" / "peers.md"
HEADER = ["model", "neurons kept", "layer", "ridge", "chunks", "one by one", "swapped", "raw"]


def make_tables(folder: Path) -> TableMakers:
    """The one table of the document, from the results in a folder."""
    return {"local_search": functools.partial(search_table, load(folder, "local_search"))}


def search_table(results: Results) -> Table:
    """A row a layer: the part of its output that is lost, in chunks, and the others against it."""
    return [HEADER, *(_row(each, row) for each in results for row in each["rows"])]


def _row(result: dict[str, Any], row: dict[str, Any]) -> list[str]:
    others = [f"{row[name] / row['chunks'] - 1:+.1%}" for name in ("one by one", "swapped")]
    kept, ridge = f"{result['keep']:.0%}", f"{result['ridge']:g}"
    lost = f"{row['chunks']:.3%}"
    return [result["model"], kept, str(row["layer"]), ridge, lost, *others, link(result)]


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables)


if __name__ == "__main__":
    main()

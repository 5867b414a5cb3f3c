"""Write the table of docs/reliability.md from the rows of benchmarks.torture.run.

    python -m benchmarks.documents.reliability_table [--check]

Results are in benchmarks/results/torture_cpu.json.
"""

from pathlib import Path
from typing import Any

from benchmarks.documents.document import ROOT, Results, load, write_tables
from benchmarks.harness.markdown import MISSING, Table, TableMakers
from benchmarks.torture.parts import PARTS

DOCUMENT = ROOT / "docs" / "reliability.md"
COLUMNS = ["fault", "how", "how many", "what it came to", "lost"]


def make_tables(folder: Path) -> TableMakers:
    """Every table of the document, from the results in a folder."""
    return {"torture": lambda: torture_table(load(folder, "torture"))}


def torture_table(results: Results) -> Table:
    """A row for each part; one that was never run keeps it."""
    rows: dict[str, Any] = results[0]["rows"] if results else {}
    return [COLUMNS, *(_row(name, rows.get(name)) for name in PARTS)]


def _row(name: str, row: dict[str, Any] | None) -> list[str]:
    part = PARTS[name]
    if row is None:
        return [part.fault, part.how, MISSING, "", ""]
    came = ", ".join(f"{outcome}: {count:,}" for outcome, count in row["outcomes"].items())
    lost = "; ".join(f"{label}: {outcome}" for label, outcome in row["lost"]) or "nothing"
    number = f"{row['num_cases']:,}{'' if row['whole'] else ', drawn at random'}"
    return [part.fault, part.how, number, came, lost.replace("|", "\\|")]


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables)


if __name__ == "__main__":
    main()

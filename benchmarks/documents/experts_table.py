"""Write the table of docs/experts.md from the rows of benchmarks.experts.study.

    python -m benchmarks.documents.experts_table [--check]

Results are in benchmarks/results/experts_demo_cpu.json.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.documents.document import ROOT, Results, load, write_tables
from benchmarks.harness.markdown import Table, TableMakers

DOCUMENT = ROOT / "docs" / "experts.md"
COLUMNS = [
    "what goes",
    "experts",
    "width",
    "parameters",
    "FLOPs per token",
    "pruned",
    "recovered",
]


def make_tables(folder: Path) -> TableMakers:
    """Every table of the document, from the results in a folder."""
    return {"experts": lambda: experts_table(load(folder, "experts"))}


def experts_table(results: Results) -> Table:
    """The mixture, and a row for each of the study."""
    table: Table = [COLUMNS]
    for study in results:
        rows = study["rows"]
        before = [["nothing", "", "", "100.0%", "100.0%", "", _percent([rows[0]["dense"]])]]
        table += before if rows else []
        for row in rows:
            sizes = [f"{row[name]:.1%}" for name in ("parameters", "flops_per_token")]
            accuracies = [_percent(row[name]) for name in ("pruned", "recovered")]
            table.append(
                [row["name"], str(row["num_experts"]), str(row["width"]), *sizes, *accuracies]
            )
    return table


def _percent(accuracies: Sequence[float]) -> str:
    """Accuracies of one round after another."""
    return ", ".join(f"{100 * each:.1f}" for each in accuracies)


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables)


if __name__ == "__main__":
    main()

"""The sections of docs/paper.md on methods are what the rows give."""

from pathlib import Path
from typing import Any

from benchmarks.documents import methods_table
from benchmarks.documents.document import RESULTS, ROOT
from benchmarks.methods import compare


def test_committed_documents_are_what_the_rows_give() -> None:
    methods_table.main(["--check"])
    rows, document = RESULTS / "compare_demo_peers.json", ROOT / "docs" / "peers.md"
    methods_table.main(["--check", "--json", str(rows), "--document", str(document)])


def test_sections_are_replaced_with_their_figures_and_the_rest_is_kept(
    results: dict[str, Any], tmp_path: Path
) -> None:
    rows, figures, document = (
        tmp_path / "rows.json",
        tmp_path / "tables",
        tmp_path / "docs" / "paper.md",
    )
    rows.write_text(compare.to_json(results))
    figures.mkdir()
    (figures / "budget.png").touch()
    document.parent.mkdir()
    document.write_text(
        "# FLOPs\n\nkept\n\n<!-- begin: table1 -->\nold\n<!-- end: table1 -->\n\nalso kept\n"
    )
    arguments = ["--json", str(rows), "--figures", str(figures), "--document", str(document)]
    methods_table.main(arguments)
    text = document.read_text()
    assert text.startswith("# FLOPs\n\nkept\n\n<!-- begin: table1 -->\n| size |")
    assert "old" not in text
    assert "also kept" in text
    assert text.count("<!-- begin: budget -->") == 1
    assert "![Accuracy against recovery tokens](../tables/budget.png)" in text
    methods_table.main(arguments)
    assert document.read_text() == text

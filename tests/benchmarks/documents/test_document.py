"""What the writers of documents share."""

import json
from pathlib import Path

import pytest

from benchmarks.documents import document
from benchmarks.harness.environment import ROOT
from benchmarks.harness.markdown import MISSING


def test_results_are_found_by_prefix_and_know_their_file(tmp_path: Path) -> None:
    for name in ("speedup_b", "speedup_a", "other_a"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [name]}))
    found = document.load(tmp_path, "speedup")
    assert [each["file"] for each in found] == ["speedup_a.json", "speedup_b.json"]
    assert document.link(found[0]) == "[speedup_a.json](../benchmarks/results/speedup_a.json)"


def test_commit_is_short_and_says_whether_code_differed() -> None:
    assert (
        document.commit_cell({"commit": "0123456789ab", "dirty": True}) == "012345678 and changes"
    )
    assert document.commit_cell({"commit": None, "dirty": None}) == ""


def test_check_changes_nothing_and_fails_where_the_document_differs(tmp_path: Path) -> None:
    file = tmp_path / "document.md"
    file.write_text("<!-- table:one -->\nstale\n<!-- end -->\n")

    def run(*flags: str) -> None:
        arguments = ["--document", str(file), *flags]
        document.write_tables(arguments, "", file, lambda _: {"one": lambda: [["a"], ["1"]]})

    with pytest.raises(SystemExit, match="is not what the results give"):
        run("--check")
    assert "stale" in file.read_text()
    run()
    run("--check")
    assert "stale" not in file.read_text()


def test_documents_say_once_what_was_not_measured() -> None:
    """Not in every cell: rows and columns without a measurement are a line below their table."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
        assert sum(line.count(f"| {MISSING} |") for line in lines) <= 10, path
        for line in lines:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            values = [cell for cell in cells if cell]
            assert values.count(MISSING) <= len(values) // 2, line


def test_named_tables_say_below_what_was_not_measured(tmp_path: Path) -> None:
    file = tmp_path / "document.md"
    file.write_text("<!-- table:one -->\n<!-- end -->\n")
    table = [["device", "ms"], ["CPU", "1"], ["GPU", MISSING]]
    document.write_tables(
        ["--document", str(file)], "", file, lambda _: {"one": lambda: table}, {"one": 1}
    )
    assert "| CPU | 1 |\n\nNot measured: GPU.\n<!-- end -->" in file.read_text()

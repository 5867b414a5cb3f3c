"""What the writers of documents share."""

import json
from pathlib import Path

import pytest

from benchmarks.documents import document


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

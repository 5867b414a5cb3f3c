"""docs/reliability.md is what the rows of the torture give."""

from benchmarks.documents import reliability_table
from benchmarks.harness.markdown import MISSING
from benchmarks.torture.parts import PARTS


def test_every_part_has_a_row_also_if_it_was_not_run() -> None:
    row = {"outcomes": {"one line": 1200}, "lost": [], "num_cases": 1200, "whole": False}
    lost = {**row, "lost": [["a case", "a | traceback"]], "whole": True}
    rows = {"kills": row, "models": lost}
    table = reliability_table.torture_table([{"rows": rows}])
    assert len(table) == 1 + len(PARTS)
    cells = {name: row[2:] for name, row in zip(PARTS, table[1:], strict=True)}
    assert cells["kills"] == ["1,200, drawn at random", "one line: 1,200", "nothing"]
    assert cells["models"] == ["1,200", "one line: 1,200", "a case: a \\| traceback"]
    assert cells["flags"] == [MISSING, "", ""]


def test_committed_document_is_what_the_rows_give() -> None:
    reliability_table.main(["--check"])

"""docs/models.md is what the rows give."""

from benchmarks.documents import models_table


def test_reasons_are_without_what_all_say() -> None:
    message = (
        "BloomForCausalLM (model_type bloom): neurons cannot be removed: its FFNs are wide; whole"
        " layers may go with --keep 1 --drop-layers N"
    )
    assert models_table.reason(message) == "its FFNs are wide"
    message = "--drop-layers 1: layers of this model (model_type a-b) cannot go: they are few"
    assert models_table.reason(message) == "they are few"
    message = (
        "--model tiny (model_type zaya) is not supported: whole experts cannot be removed: it has 5"
        " rows; docs/models.md lists the types whose experts can go"
    )
    assert models_table.reason(message) == "it has 5 rows"


def test_what_was_not_tried_has_a_table_of_its_own() -> None:
    rows = [
        {"label": "a", "neurons": "exact", "layers": "exact", "generation": ""},
        {"label": "b", "neurons": "no tiny model: big", "layers": "exact", "generation": ""},
    ]
    tried, untried = models_table.tables(rows)
    assert tried[1:] == [["a", "exact", "exact", "", ""]]
    assert ["b", "big"] in untried


def test_committed_document_is_what_the_rows_give() -> None:
    models_table.main(["--check"])


def test_committed_rows_are_never_wrong() -> None:
    import json

    rows = json.loads(models_table.FILE.read_text())["rows"]
    cells = [row[kind] for row in rows for kind in ("neurons", "layers", "experts")]
    assert not [cell for cell in cells if cell.startswith(("WRONG", "ERROR"))]
    assert sum(row["layers"] == models_table.EXACT for row in rows) >= 75

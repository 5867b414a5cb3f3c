"""Markdown tables and the places of a document that they are written to."""

import pytest

from benchmarks.harness.markdown import fill_tables, head, line, replace_sections, to_markdown

DOCUMENT = "before\n<!-- table:sizes -->\nstale\n<!-- end -->\nafter\n"


def test_columns_of_numbers_are_to_the_right() -> None:
    table = [["name", "ms", "note"], ["a", "1.5", "x"], ["b", "not measured", ""], ["c", "", "2"]]
    assert to_markdown(table).splitlines()[:3] == [
        "| name | ms | note |",
        "|---|--:|---|",
        "| a | 1.5 | x |",
    ]


def test_rows_that_are_printed_one_by_one_fit_under_their_head() -> None:
    assert head(["a", "b"]) == "| a | b |\n|---|---|"
    assert line(["1", "2"]) == "| 1 | 2 |"


def test_marked_tables_are_written_anew_and_the_rest_is_kept() -> None:
    filled = fill_tables(DOCUMENT, {"sizes": lambda: [["size"], ["3"]]})
    table = "| size |\n|--:|\n| 3 |"
    assert filled == f"before\n<!-- table:sizes -->\n{table}\n<!-- end -->\nafter\n"


def test_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no table 'sizes'; choose from others"):
        fill_tables(DOCUMENT, {"others": list})


def test_sections_are_replaced_or_added_under_their_heading() -> None:
    document = "# Title\n\n<!-- begin: one -->\nold\n<!-- end: one -->\n\nkept\n"
    headings = {"one": "One", "two": "Two"}
    text = replace_sections(document, {"one": r"new \1", "two": "added"}, headings)
    assert text == (
        "# Title\n\n<!-- begin: one -->\nnew \\1\n<!-- end: one -->\n\nkept\n\n"
        "## Two\n\n<!-- begin: two -->\nadded\n<!-- end: two -->\n"
    )

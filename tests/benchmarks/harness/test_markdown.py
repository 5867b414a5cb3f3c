"""Markdown tables and the places of a document that they are written to."""

import pytest

from benchmarks.harness.markdown import (
    MISSING,
    condensed,
    fill_tables,
    head,
    line,
    replace_sections,
    to_markdown,
)

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


def test_what_was_not_measured_is_a_line_below_the_table() -> None:
    table = [
        ["device", "batch", "ours ms", "peer", "other peer"],
        ["CPU", "1", "2.0", MISSING, "1.5"],
        ["CPU", "8", "3.0", MISSING, MISSING],
        ["GPU", "1", MISSING, MISSING, MISSING],
        ["GPU", "8", MISSING, "", MISSING],
        ["TPU", "", f"{MISSING}: nobody has one", MISSING, MISSING],
    ]
    assert condensed(table, 2) == (
        "| device | batch | ours ms | other peer |\n|---|--:|--:|--:|\n| CPU | 1 | 2.0 | 1.5 |\n"
        f"| CPU | 8 | 3.0 | {MISSING} |\n\n"
        "Not measured: GPU, batch 1 / 8; TPU (nobody has one); columns peer."
    )


def test_a_table_without_any_measurement_is_a_line_that_names_its_columns() -> None:
    table = [["model", "right %", "tokens"], ["dense", MISSING, MISSING], ["ours", MISSING, ""]]
    assert condensed(table, 1) == "Not measured: dense / ours; of each: right %, tokens."


def test_a_whole_table_stays_as_it_is() -> None:
    table = [["model", "right %"], ["dense", "43"], ["ours", "40"]]
    assert condensed(table, 1) == to_markdown(table)


def test_a_row_without_results_that_is_no_measurement_stays() -> None:
    table = [["model", "note"], ["dense", ""], ["ours", MISSING]]
    assert condensed(table, 1) == (
        "| model | note |\n|---|--:|\n| dense |  |\n\nNot measured: ours."
    )

"""Columns line up, and renderers know where the header ends."""

from ptl_fast.base import markdown


def test_table_by_hand() -> None:
    assert markdown.table([["round", "nll"], ["dense", "1.25"], ["1", "10.5"]]) == (
        "| round |  nll |\n|------:|-----:|\n| dense | 1.25 |\n|     1 | 10.5 |"
    )


def test_a_table_of_a_header_alone() -> None:
    assert markdown.table([["a"]]) == "| a |\n|--:|"

"""Columns line up, and renderers know where the header ends."""

from ptl_fast.base import markdown


def test_table_by_hand() -> None:
    assert markdown.table([["round", "nll"], ["dense", "1.25"], ["1", "10.5"]]) == (
        "| round |  nll |\n|------:|-----:|\n| dense | 1.25 |\n|     1 | 10.5 |"
    )


def test_a_table_of_a_header_alone() -> None:
    assert markdown.table([["a"]]) == "| a |\n|--:|"


def test_titles_of_a_table_that_is_too_wide_get_lines() -> None:
    given = markdown.table([["round", "exact_match/number pruned"], ["dense", "1.0000"]])
    text = f"before\n\n{given}\nafter"
    assert markdown.fitted(text, 100) == text
    assert markdown.fitted(text, 20).splitlines() == [
        "before",
        "",
        "|       | exact_ |",
        "|       | match/ |",
        "|       | number |",
        "| round | pruned |",
        "|------:|-------:|",
        "| dense | 1.0000 |",
        "after",
    ]
    # nothing is left to break: the spaces go
    assert markdown.fitted(text, 15).splitlines()[-3:] == [
        "|----:|-----:|",
        "|dense|1.0000|",
        "after",
    ]

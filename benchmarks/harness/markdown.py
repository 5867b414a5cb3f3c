"""Tables in markdown, and the marked places in documents that they are written to."""

import re
from collections.abc import Callable

MISSING = "not measured"
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Makers = dict[str, Callable[[], list[list[str]]]]


def fill(document: str, makers: Makers) -> str:
    """Return the document with every marked table written anew.

    Raises:
        ValueError: a marker names no table.
    """

    def write(match: re.Match[str]) -> str:
        if match[2] not in makers:
            raise ValueError(f"there is no table {match[2]!r}; choose from {', '.join(makers)}")
        return f"{match[1]}{to_markdown(makers[match[2]]())}\n{match[3]}"

    return MARKED.sub(write, document)


def to_markdown(table: list[list[str]]) -> str:
    """A header and rows as a Markdown table; numbers to the right."""
    header, *rows = table
    rules = [
        "--:" if all(_is_number(row[column]) for row in rows) else "---"
        for column in range(len(header))
    ]
    return "\n".join([_line(header), f"|{'|'.join(rules)}|", *map(_line, rows)])


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell == MISSING


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

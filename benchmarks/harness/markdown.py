"""Markdown tables, and the marked places of a document that are written anew."""

import re
from collections.abc import Callable, Mapping, Sequence

MISSING = "not measured"
TABLE_PLACE = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SECTION = "<!-- begin: {name} -->\n{content}\n<!-- end: {name} -->"

Table = list[list[str]]
"""Cells by row; the first row is the header."""
TableMakers = dict[str, Callable[[], Table]]
"""By the name in the document's marker."""


def to_markdown(table: Table) -> str:
    """A table as markdown; columns of numbers are aligned to the right."""
    header, *rows = table
    rules = [
        "--:" if all(_is_number(row[column]) for row in rows) else "---"
        for column in range(len(header))
    ]
    return "\n".join([line(header), f"|{'|'.join(rules)}|", *map(line, rows)])


def head(columns: Sequence[str]) -> str:
    """The first two lines of a table whose rows are printed one by one, as they are measured."""
    return f"{line(columns)}\n|{'---|' * len(columns)}"


def line(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"


def fill_tables(document: str, makers: TableMakers) -> str:
    """Return the document with the table between ``<!-- table:NAME -->`` and ``<!-- end -->``
    written anew, for every such place.

    Raises:
        ValueError: a marker names no table.
    """

    def write(match: re.Match[str]) -> str:
        if match[2] not in makers:
            raise ValueError(f"there is no table {match[2]!r}; choose from {', '.join(makers)}")
        return f"{match[1]}{to_markdown(makers[match[2]]())}\n{match[3]}"

    return TABLE_PLACE.sub(write, document)


def replace_sections(
    document: str, contents: Mapping[str, str], headings: Mapping[str, str]
) -> str:
    """Write every section between its markers, ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``.

    A section whose markers the document lacks is added at the end, under its heading.
    """
    for name, content in contents.items():
        written = SECTION.format(name=name, content=content)
        place = re.compile(SECTION.format(name=name, content=".*?"), re.DOTALL)
        if place.search(document):
            # a function, since backslashes in a replacement string would be escapes
            document = place.sub(lambda _, written=written: written, document)  # type: ignore[misc]
        else:
            document = f"{document.rstrip()}\n\n## {headings[name]}\n\n{written}\n".lstrip()
    return document


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell == MISSING

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


def fill_tables(
    document: str, makers: TableMakers, num_names: Mapping[str, int] | None = None
) -> str:
    """Return the document with the table between ``<!-- table:NAME -->`` and ``<!-- end -->``
    written anew, for every such place.

    Args:
        num_names: {table: how many of its first columns only name a row}; of these tables, rows and
            columns in which nothing is measured are named in a line below the table.

    Raises:
        ValueError: a marker names no table.
    """

    def write(match: re.Match[str]) -> str:
        if match[2] not in makers:
            raise ValueError(f"there is no table {match[2]!r}; choose from {', '.join(makers)}")
        table = makers[match[2]]()
        names = (num_names or {}).get(match[2])
        text = to_markdown(table) if names is None else condensed(table, names)
        return f"{match[1]}{text}\n{match[3]}"

    return TABLE_PLACE.sub(write, document)


def condensed(table: Table, num_names: int) -> str:
    """A table as markdown whose rows and columns without any measurement are a line below it.

    Args:
        num_names: how many of the first columns only name a row.
    """
    header, *rows = table
    empty = [row for row in rows if _is_unmeasured(row[num_names:])]
    kept = [row for row in rows if row not in empty]
    columns = [
        column
        for column in range(len(header))
        if not kept or column < num_names or not all(_is_missing(row[column]) for row in kept)
    ]
    named = _merged([[*row[:num_names], _reason(row[num_names:])] for row in empty])
    notes = [each for each in (_named(row, header) for row in named) if each]
    missing = [name for column, name in enumerate(header) if column not in columns]
    notes += [f"columns {', '.join(missing)}"] if missing else []
    if not kept:
        values = ", ".join(header[num_names:])
        return f"Not measured: {'; '.join(notes)}; of each: {values}." if notes else ""
    text = to_markdown([[row[column] for column in columns] for row in [header, *kept]])
    return f"{text}\n\nNot measured: {'; '.join(notes)}." if notes else text


def _is_missing(cell: str) -> bool:
    """Also "not measured: REASON"."""
    return cell == MISSING or cell.startswith(f"{MISSING}: ")


def _is_unmeasured(cells: Sequence[str]) -> bool:
    return any(map(_is_missing, cells)) and all(not cell or _is_missing(cell) for cell in cells)


def _reason(cells: Sequence[str]) -> str:
    """Why nothing was measured, in parentheses, if a cell says it."""
    reasons = (cell.removeprefix(f"{MISSING}: ") for cell in cells if cell and cell != MISSING)
    return next((f"({reason})" for reason in reasons), "")


def _merged(rows: Table) -> Table:
    """Rows that differ in one column alone as one, with that column's values side by side."""
    for column in reversed(range(len(rows[0]) if rows else 0)):
        groups: dict[tuple[str, ...], list[str]] = {}
        for row in rows:
            others = (*row[:column], *row[column + 1 :])
            groups.setdefault(others, []).append(row[column])
        rows = [
            [*others[:column], " / ".join(dict.fromkeys(values)), *others[column:]]
            for others, values in groups.items()
        ]
    return rows


def _named(names: Sequence[str], header: Sequence[str]) -> str:
    """A row's names in words, then its last cell, the reason: a number says what it counts."""
    cells = [
        f"{title} {name}" if name[0].isdigit() else name
        for name, title in zip(names[:-1], header, strict=False)
        if name
    ]
    return " ".join(each for each in (", ".join(cells), names[-1]) if each)


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

"""Format markdown tables."""

import itertools
import re

# where a title may be broken: behind these
BREAK = re.compile(r"(?<=[/_ ])")


def table(rows: list[list[str]], num_titles: int = 1, space: str = " ") -> str:
    """Format a markdown table; ``rows[0]`` is the header, and all rows have as many cells.

    Cells are padded, so that the columns also line up in a terminal, and aligned to the right.

    Args:
        num_titles: rows above the ruler; more than one is for a terminal alone.
        space: what stands on both sides of a cell.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "|"
        + "|".join(
            f"{space}{cell.rjust(width)}{space}" for cell, width in zip(row, widths, strict=True)
        )
        + "|"
        for row in rows
    ]
    # ---: aligns a column to the right where markdown is rendered
    ruler = "|" + "|".join("-" * (width + 2 * len(space) - 1) + ":" for width in widths) + "|"
    lines.insert(num_titles, ruler)
    return "\n".join(lines)


def fitted(text: str, width: int) -> str:
    """A text with tables, for a terminal: titles of a table that is too wide get several lines.

    If that is not enough, cells lose the spaces around them. A table whose other cells alone are
    too wide stays so.

    Args:
        width: characters in a line.
    """
    lines: list[str] = []
    for is_table, block in itertools.groupby(text.split("\n"), lambda line: line.startswith("|")):
        found = list(block)
        is_wide = is_table and len(found) > 1 and len(found[0]) > width
        lines += [_with_broken_titles(found, width)] if is_wide else found
    return "\n".join(lines)


def _with_broken_titles(lines: list[str], width: int) -> str:
    """The table, its columns as wide as their cells and the longest parts of their titles."""
    header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    titles = [
        _broken(title, max((len(row[index]) for row in rows), default=0))
        for index, title in enumerate(header)
    ]
    height = max(map(len, titles))
    # their last lines stand beside one another, above the ruler
    padded = [[""] * (height - len(each)) + each for each in titles]
    all_rows = [*map(list, zip(*padded, strict=True)), *rows]
    result = table(all_rows, height)
    return result if result.index("\n") <= width else table(all_rows, height, space="")


def _broken(title: str, width: int) -> list[str]:
    """The lines of a title in a column of this width; a part that is longer stays whole."""
    lines = [""]
    for part in BREAK.split(title):
        if lines[-1] and len((lines[-1] + part).strip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.strip() for line in lines]

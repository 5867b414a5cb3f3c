"""Format markdown tables."""


def table(rows: list[list[str]]) -> str:
    """Format a markdown table; ``rows[0]`` is the header, and all rows have as many cells.

    Cells are padded, so that the columns also line up in a terminal, and aligned to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    # ---: aligns a column to the right where markdown is rendered
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)

"""Small data files."""

import json
from pathlib import Path

from ptl_fast.demo.problems import generate


def write_rows(path: Path, *rows: object) -> str:
    """Write a jsonl file, texts as they are; return its path."""
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return str(path)


def write_data(path: Path, num_problems: int = 400) -> Path:
    path.write_text(
        "".join(json.dumps(problem) + "\n" for problem in generate(num_problems, 9, "training"))
    )
    return path

"""Few problems to chat about."""

from pathlib import Path

from ptl_fast.demo.problems import generate
from support.files import write_rows


def gsm8k_file(file: Path, count: int) -> str:
    """Problems {question, answer} of the bundled model."""
    return write_rows(file, *generate(count, 5, "test"))


def mbpp_file(file: Path, count: int) -> str:
    """Problems {text, test_list}: add a number."""
    rows = [
        {"text": f"Add {number}.", "test_list": [f"assert f(1) == {1 + number}"]}
        for number in range(count)
    ]
    return write_rows(file, *rows)

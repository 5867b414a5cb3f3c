"""Files of results and what their rows have in common. Imports nothing heavy."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base.atomic_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = "ok"
"""The status of a row with numbers; any other status says why there are none."""


def not_measured(reason: str) -> str:
    """The status of a row without numbers."""
    return f"not measured: {reason}"


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Around reading what the user named: what is wrong with it ends the program with one line
    instead of a traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that an interruption leaves the old or the new one."""
    write_atomically(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write results, one value a line so that git shows which of them changed."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_figure(path: Path, figure: "Figure", metadata: dict[str, None]) -> None:
    """Write a figure in the format of the file's suffix.

    ``metadata`` names what matplotlib is to leave out (its version, the date), so that the same
    results give the same file.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], metadata=metadata)
    write_atomically(path, content.getvalue())

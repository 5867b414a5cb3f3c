"""Files of results. Imports nothing heavy."""

import os
from pathlib import Path

MEASURED = "ok"  # the status of a row with numbers; any other says why there are none


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that an interruption leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)

"""JSON that somebody else has written."""

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested so deep that Python's own reader gives up with another
            error.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested too deep: {text[:20]!s}...") from error

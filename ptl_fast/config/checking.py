"""What every group of settings checks itself with, and what a setting may say about itself."""

import math
import os
from collections.abc import Iterable
from typing import Any

# Metadata of a field: may it differ between a run and its continuation?
FREE = {"on_resume": "free"}
"""It does not change what is computed."""
ROUNDING = {"on_resume": "rounding"}
"""It changes rounding alone, and a run that was out of memory must not begin anew."""


def flag(name: str) -> str:
    """The command-line flag of a setting, for messages."""
    return f"--{name.replace('_', '-')}"


def as_text(path: Any) -> str | None:
    """A path that may be given as a path object."""
    return None if path is None else os.fspath(path)


def check_at_least_one(settings: Any, names: Iterable[str]) -> None:
    """Raise ValueError for a number below 1; None and auto are no numbers."""
    for name in names:
        value = getattr(settings, name)
        if value not in (None, "auto") and value < 1:
            raise ValueError(f"{flag(name)} {value} must be at least 1")


def check_finite(settings: Any, names: Iterable[str]) -> None:
    """Raise ValueError for NaN and infinity."""
    for name in names:
        if not math.isfinite(getattr(settings, name)):
            raise ValueError(f"{flag(name)} {getattr(settings, name)} must be a finite number")

"""Helpers for the groups of settings: checks of values, and metadata on resuming a run."""

import difflib
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Metadata of a field whose value may be different when a run is resumed. Without metadata it may
# not: the run's folder would then hold rounds of two different runs.
FREE = {"on_resume": "free"}
"""The setting does not change what is computed."""
ROUNDING = {"on_resume": "rounding"}
"""The setting only changes rounding errors, as batch sizes do: after running out of memory, a run
can be resumed with smaller ones.
"""


def former_default(value: Any) -> dict[str, Any]:
    """Metadata of a field: its default, or what was done, when older runs began. A run that began
    so goes on so where the command does not ask for anything else.
    """
    return {"former_default": value}


def flag(name: str) -> str:
    """Return the command-line flag of a setting, for messages: keep_rounds -> --keep-rounds."""
    return f"--{name.replace('_', '-')}"


def nearest(name: str, choices: Iterable[str], write: Callable[[str], str] = str) -> str:
    """``"; did you mean X?"`` for the choice that is most like a name; empty where none is.

    Args:
        write: how a choice is written.
    """
    # in lower case; bf16 is two thirds like bfloat16, and hope half like none
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.55)
    return f"; did you mean {write(lower[found[0]])}?" if found else ""


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """The message for a name that is none of the choices."""
    listed = list(choices)
    return f"unknown {what} {name}; choose {', '.join(listed)}{nearest(name, listed)}"


def nearest_file(path: Path) -> str:
    """``"; did you mean X?"`` for the file beside a missing one whose name is most like its own."""
    folder = path.parent
    try:
        beside = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    except OSError:
        return ""
    return nearest(path.name, beside, lambda name: str(folder / name))


def as_text(path: Any) -> str | None:
    """Return a str or path object as str; None stays None. Settings are kept as JSON.

    A leading ~ is the home folder: shells leave it as it is in quotes, and in --output=~/x.
    """
    return None if path is None else os.path.expanduser(os.fspath(path))


def check_at_most(settings: Any, name: str, most: int, why: str) -> None:
    """Raise ValueError if a setting is above ``most``; None passes."""
    value = getattr(settings, name)
    if value is not None and value > most:
        raise ValueError(f"{flag(name)} {value} is more than {most:,}, {why}")


def check_at_least_one(settings: Any, names: Iterable[str]) -> None:
    """Raise ValueError if one of these settings is below 1; None and "auto" pass."""
    for name in names:
        value = getattr(settings, name)
        if value not in (None, "auto") and value < 1:
            raise ValueError(f"{flag(name)} {value} must be at least 1")


def check_finite(settings: Any, names: Iterable[str]) -> None:
    """Raise ValueError if one of these settings is NaN or infinite."""
    # NaN needs a check of its own: it is neither below nor above any limit
    for name in names:
        if not math.isfinite(getattr(settings, name)):
            raise ValueError(f"{flag(name)} {getattr(settings, name)} must be a finite number")

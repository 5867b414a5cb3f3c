"""Which file of a model's folder is to blame, where a library only says why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ptl_fast.base.console import reason

WEIGHTS = (".safetensors", ".bin")


def blame(folder: Path | None) -> str:
    """Name the first file of the folder that cannot be read for what it is: ``"; FILE: why"``.

    Empty if there is no folder or all can be read; what they hold may then not fit together.
    """
    if folder is None or not folder.is_dir():
        return ""
    for file in sorted(folder.iterdir()):
        check = next((each for ending, each in CHECKS.items() if file.name.endswith(ending)), None)
        if check is None:
            continue
        wrong = check(file) if file.is_file() else "no file, or a link to none"
        if wrong:
            return f"; {file}: {wrong}"
    return ""


def _index(file: Path) -> str:
    """What is wrong with a list of weight files."""
    if wrong := _json(file):
        return wrong
    content: Any = json.loads(file.read_text("utf-8"))
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        return "it has no weight_map of names and files"
    if not isinstance(content.get("metadata", {}), dict):
        return "its metadata is no JSON object"
    for name, place in places.items():
        known = isinstance(place, str) and "\0" not in place
        if not known or not (file.parent / place).is_file():
            return f"{name} is said to be in {place!r}, and there is no such file"
        if Path(place).suffix not in WEIGHTS or Path(place).is_absolute():
            return f"{name} is said to be in {place!r}, which is no file of weights in the folder"
    return ""


def _json(file: Path) -> str:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"no JSON ({reason(error)})"
    return "" if isinstance(content, dict) else "no JSON object"


def _weights(file: Path) -> str:
    try:
        with safe_open(file, framework="pt") as stored:
            stored.keys()
    except (OSError, ValueError, SafetensorError) as error:
        return f"damaged or cut off ({reason(error)})"
    return ""


# {ending of a file's name: what is wrong with the file}; the first that fits counts
CHECKS: dict[str, Callable[[Path], str]] = {
    ".index.json": _index,
    ".json": _json,
    ".safetensors": _weights,
}

"""Names of lm-eval's tasks, read from its files within a second and without importing it.

Building lm-eval's own index takes ten times as long. What is here is a superset of its tasks: a
name that is not here is none, and one that is may still be a group.
"""

import functools
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ptl_fast.config.checking import nearest

# "task: NAME", and the items of lists, which may be tasks of a group
NAMED = re.compile(r"""^[ \t]*(?:-[ \t]+)?["']?task["']?:[ \t]*["']?([^"'\n#]+)""", re.MULTILINE)
LISTED = re.compile(r"""^[ \t]*-[ \t]+["']?([^"'\n#:]+)""", re.MULTILINE)


@functools.cache
def stock_names() -> frozenset[str]:
    """Every name in lm-eval's files that may be a task; empty where it is not installed."""
    found = find_spec("lm_eval")
    names: set[str] = set()
    for package in (found.submodule_search_locations or []) if found is not None else []:
        for folder, _, files in os.walk(Path(package) / "tasks"):
            for file in files:
                if file.endswith(".yaml"):
                    text = Path(folder, file).read_text(encoding="utf-8", errors="replace")
                    names.update(name.strip() for name in NAMED.findall(text))
                    names.update(name.strip() for name in LISTED.findall(text))
    return frozenset(names)


def nearest_task(name: str, shipped: Sequence[str]) -> str:
    """``"; did you mean X?"`` for the task that is most like a name, ours or lm-eval's."""
    # difflib takes seconds for all 14,000 of them: those that begin or end alike
    names, start, end = stock_names(), name[:3].lower(), name[-3:].lower()
    begin = [each for each in names if each.lower().startswith(start)]
    return nearest(name, [*shipped, *sorted(begin)]) or nearest(
        name, sorted(each for each in names if each.lower().endswith(end))
    )

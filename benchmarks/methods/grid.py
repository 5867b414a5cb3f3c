"""The grid of benchmarks.methods.compare: the runs that its tables and figures need.

Every method gets the same model, data, recovery tokens, learning rate and evaluation. A point is
one place in a table or figure; a cell is one run of ptl_fast.compress. Points share the cells whose
settings are equal.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.methods.setup import Settings, Setup, num_parameters, planned
from benchmarks.methods.studies import STUDIES

FILES = ("data", "protect", "eval_tasks")  # settings too long for a folder's name

# Seconds on one thread with the bundled model: imports and data, an evaluation on 500 problems,
# training on one token. Measured on a virtual machine with 2 busy cores. Every cell evaluates the
# same dense model again; that is 6% of its time, and not worth sharing.
STARTUP_S, EVALUATION_S, TOKEN_S = 9.0, 3.4, 1.9e-4


@dataclass(frozen=True, kw_only=True)
class Point:
    """One place in a table or figure."""

    study: str
    method: str
    keep: float
    x: float | None
    settings: Settings
    """Complete but for the seed."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    name: str
    settings: Settings
    cost_s: float
    """About how long it takes on one thread; right for the bundled model, and for others in
    proportion.
    """


def make_points(
    studies: Iterable[str], setup: Setup, methods: Sequence[str] | None = None
) -> list[Point]:
    """The points of these studies, of these methods alone if some are given.

    Raises:
        ValueError: settings that ptl_fast does not have, or that do not fit the model; names every
            such method.
    """
    points, problems = [], []
    for study in studies:
        for draft in STUDIES[study](setup):
            if methods is not None and draft.method not in methods:
                continue
            try:
                settings = {
                    **setup.base,
                    **draft.settings_at_size(setup, draft.keep),
                    **draft.changes,
                }
                num_parameters(settings)  # raises where the settings do not fit
            except (ValueError, TypeError) as error:
                problems.append(f"{study}, {draft.method}: {error}")
            else:
                points.append(
                    Point(
                        study=study,
                        method=draft.method,
                        keep=draft.keep,
                        x=draft.x,
                        settings=settings,
                    )
                )
    if problems:
        listed = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        raise ValueError(
            "these cells cannot run; correct them, or choose others with --studies and"
            f" --methods:\n{listed}"
        )
    return points


def cell(settings: Settings, seed: int, base: Settings) -> Cell:
    """The run of these settings with a seed."""
    settings = {**settings, "seed": seed}
    return Cell(name=cell_name(settings, base), settings=settings, cost_s=cost(settings))


def cell_name(settings: Settings, base: Settings) -> str:
    """A name that shows what differs from the base, and is as unique as the settings."""
    differing = [
        f"{name}-{value}"
        for name, value in settings.items()
        if base.get(name) != value and name not in FILES
    ]
    readable = re.sub(r"[^\w.-]+", "-", "_".join(differing))[:100]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{readable}_{digest}"


def cost(settings: Settings) -> float:
    """About how many seconds a cell takes on one thread."""
    num_rounds = len(planned(settings)) - 1
    # each round is evaluated before and after its recovery, and the dense model once
    return STARTUP_S + (2 * num_rounds + 1) * EVALUATION_S + settings["recovery_tokens"] * TOKEN_S

"""What all cells of a grid have in common, and the sizes that their settings lead to."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptl_fast import planned_sizes
from ptl_fast.config.command_line import preset_settings

Settings = dict[str, Any]
"""Settings of ptl_fast.compress, by name."""

# the bundled model's problems
SPLITS = {"test": "demo_arithmetic", "validation": "demo_arithmetic_validation"}
SIZES = (0.5, 0.25, 0.125)  # fractions of the FFN neurons that PTL keeps


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the cells of a grid have in common."""

    base: Settings
    """Settings of every cell; PTL runs with exactly these."""
    english_text: Path
    """What the reference rule protects."""
    unseen: Settings | None = None
    """What changes where the recovery data lacks a skill; None where there is no such data."""
    unseen_text: Path | None = None
    """Training problems of that skill, for --protect."""
    sizes: Sequence[float] = SIZES
    """Fractions of PTL's FFN neurons that stay."""
    budgets: Sequence[int] = ()
    """Recovery tokens of the curves; the base has one of them."""


def demo_base(split: str) -> Settings:
    """The demo's settings, measured on its test or its validation problems."""
    settings = preset_settings("demo")
    return {
        **{name: value for name, value in settings.items() if name not in ("preset", "output")},
        "eval_tasks": [SPLITS[split]],
    }


def planned(settings: Settings) -> list[dict[str, int]]:
    """The sizes of the original model and after each round, from the model's config alone."""
    # the cache needs a hashable key
    return _planned(json.dumps(settings, sort_keys=True))


@functools.cache
def _planned(settings: str) -> list[dict[str, int]]:
    return planned_sizes(**json.loads(settings))


def num_parameters(settings: Settings) -> int:
    """Parameters after the last round."""
    return planned(settings)[-1]["num_parameters"]


def num_layers(setup: Setup) -> int:
    """Decoder layers of the original."""
    return planned(setup.base)[0]["num_layers"]

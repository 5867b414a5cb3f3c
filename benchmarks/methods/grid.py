"""The grid of benchmarks.methods.compare: which runs each table and figure needs, on equal terms.

Every method gets the same model, data, recovery tokens, learning rate and evaluation, and as many
parameters as PTL has at that
size: exactly where it prunes neurons, and as near as whole layers or slices allow elsewhere. A
point is one place in a table; a cell is one run of ptl_fast.compress, and points share cells whose
settings are equal.
"""

import bisect
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ptl_fast import planned_sizes
from ptl_fast.config.command_line import preset_settings
from ptl_fast.config.recovery import RecoverySettings

Settings = dict[str, Any]
T = TypeVar("T")

DEMO = "ptl-demo"
SPLITS = {"test": "demo_arithmetic", "validation": "demo_arithmetic_validation"}
SIZES = (0.5, 0.25, 0.125)
STEPS = (1, 2, 4, 8)
ORDERS = ("neurons-then-layers", "layers-then-neurons", "alternate")
ORDER_KEEP = 0.65
SLICES = 256
PAPER: Settings = {"scorer": "activation", "compensate": False}
FILES = ("data", "protect", "eval_tasks")  # settings too long for a folder's name

# Seconds of one thread with the bundled model: imports and data, an evaluation on 500 problems,
# training on one token. Measured on a virtual machine whose 2 cores were both busy. The dense
# model's evaluation, the same in every cell, is 6%: not worth sharing.
STARTUP_S, EVALUATION_S, TOKEN_S = 9.0, 3.4, 1.9e-4


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the cells of a grid have in common."""

    base: Settings
    """Settings of every cell; PTL runs with exactly these."""
    general: Path
    """English text, which the reference rule protects."""
    unseen: Settings | None = None
    """What changes where the recovery data lacks a skill; None where there is no such data."""
    unseen_text: Path | None = None
    """Training problems of that skill, for --protect."""
    sizes: Sequence[float] = SIZES
    """Fractions of PTL's FFN neurons that stay."""
    budgets: Sequence[int] = ()
    """Recovery tokens of the curves; the base has one of them."""


Maker = Callable[[Setup, float], Settings]


@dataclass(frozen=True)
class Draft:
    """A point whose settings are not worked out yet."""

    method: str
    keep: float
    """PTL's FFN fraction at this size, whatever the method removes."""
    make: Maker
    x: float | None = None
    """Place on the figure's axis: recovery tokens, or rounds."""
    changes: Settings = field(default_factory=dict)
    """Settings over those that ``make`` gives."""


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


def demo_base(split: str) -> Settings:
    """The demo's settings, measured on its test or its validation problems."""
    settings = preset_settings("demo", None)
    return {
        **{name: value for name, value in settings.items() if name not in ("preset", "output")},
        "eval_tasks": [SPLITS[split]],
    }


def nearest(candidates: Sequence[T], size: Callable[[T], int], target: int) -> T:
    """The candidate whose size is nearest to the target; sizes ascend with the candidates."""
    place = bisect.bisect_left(candidates, target, key=size)
    return min(
        candidates[max(0, place - 1) : place + 1],
        key=lambda candidate: abs(size(candidate) - target),
    )


def planned(settings: Settings) -> list[dict[str, int]]:
    """The sizes of the original and after each round."""
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


def fewer_layers(setup: Setup, keep: float, layer_scorer: str) -> Settings:
    """Whole layers at once, so many that the parameters are nearest to PTL's at this size."""

    total = num_layers(setup)

    def without(num_kept: int) -> Settings:
        num_dropped = total - num_kept
        return {
            "keep": 1.0,
            "rounds": 1,
            "drop_layers": num_dropped,
            "layers_per_round": num_dropped,
            "layer_scorer": layer_scorer,
        }

    target = num_parameters({**setup.base, "keep": keep})
    kept = nearest(
        range(1, total),
        lambda num_kept: num_parameters({**setup.base, **without(num_kept)}),
        target,
    )
    return without(kept)


def sliced(setup: Setup, keep: float) -> Settings:
    """SliceGPT (arXiv 2401.15024) at the fraction of hidden dimensions whose parameters are nearest
    to PTL's at this size.

    The count has its shortcut matrices and its language-model head, which no longer shares the
    embedding's weights.
    """

    def at(fraction: int) -> Settings:
        return {"keep": 1.0, "rounds": 1, "slice_hidden": fraction / SLICES}

    target = num_parameters({**setup.base, "keep": keep})
    return at(
        nearest(
            range(SLICES // 8, SLICES * 15 // 16),
            lambda fraction: num_parameters({**setup.base, **at(fraction)}),
            target,
        )
    )


def ptl(setup: Setup, keep: float) -> Settings:
    """The Prune-Tune Loop with the settings that all have in common."""
    return {"keep": keep}


def reference(setup: Setup, keep: float) -> Settings:
    """The authors' detection rule in PTL's schedule."""
    return {"keep": keep, "scorer": "reference", "compensate": False, "protect": str(setup.general)}


def protected(setup: Setup, keep: float) -> Settings:
    """PTL that does not remove what matters most for the skill that the recovery data lacks."""
    return {"keep": keep, "protect": str(setup.unseen_text)}


# Every method at a size. Layer and slice methods prune once, as their papers do.
# The paper's score is Eq. 4, without compensation; ours goes with Prune-Once too, so that one row
# tells what rounds are worth.
METHODS: dict[str, Maker] = {
    "PTL": ptl,
    "PTL, paper's score": lambda setup, keep: {"keep": keep, **PAPER},
    "Prune-Once": lambda setup, keep: {"keep": keep, "rounds": 1},
    "Prune-Once, paper's score": lambda setup, keep: {"keep": keep, "rounds": 1, **PAPER},
    "ShortGPT": lambda setup, keep: fewer_layers(setup, keep, "block-influence"),
    "SliceGPT": sliced,
    "CHOP": lambda setup, keep: fewer_layers(setup, keep, "last"),
    "random neurons": lambda setup, keep: {"keep": keep, "scorer": "random", "compensate": False},
    "reference rule": reference,
    "dense, same training": lambda setup, keep: {"keep": 1.0, "rounds": 1},
}
DENSE = "dense, same training"
CURVES = (
    "PTL",
    "Prune-Once",
    "ShortGPT",
    "SliceGPT",
    "CHOP",
    "random neurons",
    "reference rule",
)  # methods of the budget's figure

# What decides, in PTL's schedule for neurons and at once for layers. All but the reference rule
# compensate.
SCORERS: dict[str, Maker] = {
    "reconstruction": ptl,
    **{
        name: lambda setup, keep, name=name: {"keep": keep, "scorer": name}  # type: ignore[misc]
        for name in (
            "output-change",
            "activation",
            "fluctuation",
            "gradient",
            "magnitude",
            "random",
        )
    },
    "reference": reference,
    **{
        f"layers: {name}": lambda setup, keep, name=name: fewer_layers(setup, keep, name)  # type: ignore[misc]
        for name in ("residual", "block-influence", "angular", "last")
    },
}

# How PTL spends the same tokens.
RECOVERIES: dict[str, Settings] = {
    "PTL": {},
    "equal shares": {"recovery_split": "equal"},
    "shares grow twofold": {"recovery_split": "growing", "recovery_growth": 2.0},
    "shares grow fourfold": {"recovery_split": "growing"},
    "not compensated": {"compensate": False},
    "equal steps": {"steps": "equal"},
    "one learning-rate schedule": {"lr_schedule": "run"},
    "Adam's moments kept": {"keep_optimizer_state": True},
    "both": {"lr_schedule": "run", "keep_optimizer_state": True},
    "scored once": {"score_once": True},
    "anticipated, weight 0.0001": {"anticipate": 1e-4},
    "anticipated, weight 0.001": {"anticipate": 0.001},
    "scored during recovery, by output-change": {
        "score_during_recovery": True,
        "scorer": "output-change",
    },
}


def methods_study(setup: Setup) -> list[Draft]:
    """Table 1: every method at every size."""
    return [Draft(method, keep, make) for keep in setup.sizes for method, make in METHODS.items()]


def order_study(setup: Setup) -> list[Draft]:
    """Table 4: which of neurons and layers goes first. An eighth of the layers goes, at least one."""
    num_dropped = max(1, num_layers(setup) // 8)
    num_rounds = len(planned({**setup.base, "keep": ORDER_KEEP})) - 1 + num_dropped
    common = {"drop_layers": num_dropped, "layers_per_round": 1, **same_ends(setup, num_rounds)}
    return [Draft(order, ORDER_KEEP, ptl, changes={**common, "order": order}) for order in ORDERS]


def rounds_study(setup: Setup) -> list[Draft]:
    """Figure 3: PTL's accuracy before and after each round's recovery."""
    return [Draft("PTL", keep, ptl) for keep in setup.sizes]


def steps_study(setup: Setup) -> list[Draft]:
    """Figure 4: the same size in one large step or many small ones."""
    return [
        Draft("PTL", keep, ptl, rounds, {"rounds": rounds, **same_ends(setup, rounds)})
        for keep in setup.sizes
        for rounds in STEPS
    ]


def same_ends(setup: Setup, num_rounds: int) -> Settings:
    """Growth of the rounds' shares with which the last round's is as many times the first's as in
    PTL's own number of rounds.

    With the same growth, the first of many rounds would get fewer tokens than one sequence holds.
    """
    base_rounds = len(planned(setup.base)) - 1
    if (
        num_rounds in (1, base_rounds)
        or setup.base.get("recovery_split", RecoverySettings.recovery_split) == "equal"
    ):
        return {}
    ratio = setup.base.get("recovery_growth", RecoverySettings.recovery_growth) ** (base_rounds - 1)
    return {"recovery_growth": round(ratio ** (1 / (num_rounds - 1)), 4)}


def budget_study(setup: Setup) -> list[Draft]:
    """Accuracy against recovery tokens, for PTL and every baseline at every size."""
    return [
        Draft(method, keep, make, tokens, {"recovery_tokens": tokens})
        for keep in setup.sizes
        for tokens in setup.budgets
        for method, make in METHODS.items()
        if method in CURVES
    ]


def scorers_study(setup: Setup) -> list[Draft]:
    """What decides which neurons or layers go, everything else equal, at the smallest size."""
    return [Draft(scorer, min(setup.sizes), make) for scorer, make in SCORERS.items()]


def recovery_study(setup: Setup) -> list[Draft]:
    """How the recovery tokens are spent, at the smallest size."""
    return [
        Draft(option, min(setup.sizes), ptl, changes=changes)
        for option, changes in RECOVERIES.items()
    ]


def unseen_study(setup: Setup) -> list[Draft]:
    """Accuracy against recovery tokens for a skill that the recovery data lacks, at the middle
    size.
    """
    if setup.unseen is None:
        raise ValueError(
            "only the bundled model has data without a skill; for another model, add general text"
            " to its eval_tasks"
        )
    unseen, keep = setup.unseen, sorted(setup.sizes)[len(setup.sizes) // 2]
    return [
        Draft(method, keep, make, tokens, {**unseen, "recovery_tokens": tokens})
        for tokens in setup.budgets
        for method, make in {**METHODS, "PTL, unseen protected": protected}.items()
        if method in (*CURVES, DENSE, "PTL, unseen protected")
    ]


STUDIES: dict[str, Callable[[Setup], list[Draft]]] = {
    "methods": methods_study,
    "order": order_study,
    "rounds": rounds_study,
    "steps": steps_study,
    "budget": budget_study,
    "scorers": scorers_study,
    "recovery": recovery_study,
    "unseen": unseen_study,
}


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
                settings = {**setup.base, **draft.make(setup, draft.keep), **draft.changes}
                num_parameters(settings)
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
    return STARTUP_S + (2 * num_rounds + 1) * EVALUATION_S + settings["recovery_tokens"] * TOKEN_S

"""The cells of benchmarks.methods.reasoning, in the order of their importance: how a model is made
smaller, to which share of its parameters, on which text, with which recovery.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.methods.contenders import PAPER, nearest
from benchmarks.methods.reasoning_results import Result, finished, right
from benchmarks.methods.setup import Settings, num_parameters, planned
from ptl_fast.baselines import SCORERS
from ptl_fast.config.config import FIELDS

DENSE, DEFAULT, NONE = "dense", "default", "none"
OWN, OWN_MATH, WRITTEN = "own", "own-math", "written"
SHARES = (0.8, 0.65)
MORE_SHARES = (0.9, 0.5)
CALIBRATION_TOKENS = 131_072
NUM_LEADING = 4  # methods that are compared after recovery too


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model of the table."""

    method: str = DEFAULT
    """A key of the methods."""
    share: float = 1.0
    """Of all parameters, the embedding counted once, that the method is to keep."""
    calibration: str = OWN
    """A key of CALIBRATIONS."""
    recovery: str = NONE
    """A key of RECOVERIES."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Also the name of its file."""
        if self.method == DENSE:
            return DENSE
        text = f"{self.method}_{self.share:.0%}_{self.calibration}_{self.recovery}_{self.seed}"
        return text.replace("%", "")


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a model is made smaller."""

    title: str
    """In the table."""
    source: str = ""
    """Where it was published; empty for ours."""
    at_share: Callable[[Settings, float, int], Settings]
    """From the settings that all cells share, a share of the parameters and the multiple of widths
    to the settings that lead nearest to it."""


CALIBRATIONS: dict[str, dict[str, str]] = {
    OWN: {"gsm8k": "traces", "mbpp": "traces"},
    OWN_MATH: {"gsm8k": "traces"},
    WRITTEN: {"gsm8k": "written", "mbpp": "written"},
}
"""{name: {benchmark: the model's own answers (traces) or the data's (written)}}"""
CALIBRATION_TITLES = {
    OWN: "own answers, both tasks",
    OWN_MATH: "own answers, mathematics alone",
    WRITTEN: "the data's answers, both tasks",
}

# One round each: what is compared is the methods, at equal tokens.
RECOVERIES: dict[str, Settings] = {
    NONE: {"recovery": "none"},
    "cpt": {"recovery": "cpt"},
    "distill": {"recovery": "distill"},
    "opd": {"recovery": "opd"},
}
TRAINED = "distill"
"""The recovery of the table."""


def neurons(**settings: Any) -> Callable[[Settings, float, int], Settings]:
    """A method that removes FFN neurons, by its settings."""

    def at_share(base: Settings, share: float, multiple: int) -> Settings:
        width = planned({**base, "keep": 1.0})[0]["width"]

        def at(kept: int) -> Settings:
            return {"keep": kept * multiple / width, "rounds": 1, "width_multiple": multiple}

        kept = _nearest_share(base, share, range(1, -(-width // multiple)), at)
        return {**kept, **_known(settings)}

    return at_share


def layers(**settings: Any) -> Callable[[Settings, float, int], Settings]:
    """A method that drops whole layers, by its settings."""

    def at_share(base: Settings, share: float, multiple: int) -> Settings:
        total = planned({**base, "keep": 1.0})[0]["num_layers"]

        def at(kept: int) -> Settings:
            dropped = total - kept
            return {"keep": 1.0, "rounds": 1, "drop_layers": dropped, "layers_per_round": dropped}

        return {**_nearest_share(base, share, range(1, total), at), **_known(settings)}

    return at_share


def sliced(base: Settings, share: float, multiple: int) -> Settings:
    """SliceGPT: its shortcut matrices and its language-model head count, which no longer shares the
    embedding's weights.
    """
    slices = 256  # the fractions of hidden dimensions that are tried are multiples of 1 / slices

    def at(fraction: int) -> Settings:
        return {"keep": 1.0, "rounds": 1, "slice_hidden": fraction / slices}

    return _nearest_share(base, share, range(slices // 8, slices * 15 // 16), at)


def _nearest_share(
    base: Settings, share: float, candidates: Sequence[int], at: Callable[[int], Settings]
) -> Settings:
    """The settings whose number of parameters is nearest to this share of the original's."""
    target = round(share * planned({**base, "keep": 1.0})[0]["num_parameters"])
    return at(nearest(candidates, lambda each: num_parameters({**base, **at(each)}), target))


def _known(settings: Settings) -> Settings:
    """Without those that switch something off which this version does not have."""
    return {name: value for name, value in settings.items() if name in FIELDS or value is not False}


def _peer(title: str, scorer: str, source: str) -> Method:
    """Another method's score, as its paper runs it: all at once, without our compensation."""
    return Method(title=title, source=source, at_share=neurons(scorer=scorer, compensate=False))


METHODS: Mapping[str, Method] = {
    DEFAULT: Method(title="our default", at_share=neurons()),
    "paper": Method(title="the paper's score", source="2602.04919", at_share=neurons(**PAPER)),
    "random": Method(title="random neurons", at_share=neurons(scorer="random", compensate=False)),
    "minitron": _peer("Minitron's score", "minitron", "2407.14679"),
    "wanda": _peer("Wanda, structured", "wanda", "2306.11695"),
    "flap": _peer("FLAP, with its bias", "flap", "2312.11983"),
    "llm-pruner": _peer("LLM-Pruner's score", "llm-pruner", "2305.11627"),
    "shortgpt": Method(
        title="ShortGPT",
        source="2403.03853",
        at_share=layers(layer_scorer="block-influence", compensate_layers=False),
    ),
    "slicegpt": Method(title="SliceGPT", source="2401.15024", at_share=sliced),
    "layers-dropped": Method(title="layers, dropped", at_share=layers(compensate_layers=False)),
    "layers-compensated": Method(
        title="layers, compensated", at_share=layers(compensate_layers=True)
    ),
    "random-compensated": Method(
        title="random neurons, compensated", at_share=neurons(scorer="random")
    ),
}
"""By the name in a cell's name, in the order of the list; the last is not in the main table."""
COMPARED = tuple(METHODS)[:-1]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which cells there are."""

    shares: Sequence[float] = SHARES
    more_shares: Sequence[float] = MORE_SHARES
    seeds: Sequence[int] = (0,)
    variants: Sequence[str] = ()
    """Further methods, to be tried at the first share."""


def cells(plan: Plan, results: Mapping[str, Result]) -> list[Cell]:
    """All cells, the most important ones first.

    Those after recovery depend on ``results``: they are of the methods that lead so far.
    """
    ordered = [Cell(method=DENSE)]
    ordered += [Cell(method=name, share=plan.shares[0]) for name in plan.variants]
    ordered += [Cell(method=name, share=share) for share in plan.shares for name in COMPARED]
    ordered += [Cell(share=share) for share in plan.more_shares]
    ordered += [Cell(share=plan.shares[0], calibration=each) for each in (OWN_MATH, WRITTEN)]
    ordered += [
        Cell(method=name, share=share, recovery=TRAINED)
        for share in plan.shares
        for name in leading(results, share)
    ]
    ordered += [Cell(method="random-compensated", share=share) for share in plan.shares]
    # seed by seed: one complete table is worth more than half a table of two seeds
    seeded = [dataclasses.replace(each, seed=seed) for seed in plan.seeds for each in ordered]
    return list({each.name: each for each in seeded}.values())


def leading(results: Mapping[str, Result], share: float) -> list[str]:
    """The methods that solve most right after pruning to a share, ours among them."""
    scores: dict[str, list[int]] = {}
    for each in finished(results).values():
        cell = Cell(**each["cell"])
        if (cell.share, cell.calibration, cell.recovery) == (share, OWN, NONE):
            scores.setdefault(cell.method, []).append(sum(right(each, each["answers"])))
    found = {name: sum(every) / len(every) for name, every in scores.items() if name in COMPARED}
    others = sorted((name for name in found if name != DEFAULT), key=lambda name: -found[name])
    return [DEFAULT, *others[: NUM_LEADING - 1]]


def missing(settings: Settings) -> list[str]:
    """What this version lacks of a cell's settings; empty if it can run."""
    lacks = [f"the setting {name}" for name in settings if name not in FIELDS]
    scorer = settings.get("scorer", DEFAULT)
    lacks += [f"the scorer {scorer}"] if scorer not in (DEFAULT, *SCORERS) else []
    return lacks


def variant(text: str) -> tuple[str, Method]:
    """A method to try, from NAME:SETTING=VALUE,...: our default with other settings.

    Raises:
        ValueError: the text has another form.
    """
    import yaml

    name, found, rest = text.partition(":")
    pairs: Iterable[tuple[str, str, str]] = (part.partition("=") for part in rest.split(","))
    settings = {key.replace("-", "_"): yaml.safe_load(value) for key, _, value in pairs}
    if not found or not name or None in settings.values():
        raise ValueError(f"--variant {text!r} is not of the form NAME:SETTING=VALUE,SETTING=VALUE")
    return name, Method(title=f"our default, {rest}", at_share=neurons(**settings))

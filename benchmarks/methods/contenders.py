"""The pruning methods, scorers and ways of recovery that are compared, as settings of
ptl_fast.compress.

Every method gets as many parameters as PTL has at a size: exactly where it prunes neurons, and as
near as whole layers or slices allow elsewhere.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import TypeVar

from benchmarks.methods.setup import Settings, Setup, num_layers, num_parameters

T = TypeVar("T")

SLICES = 256  # the fractions of hidden dimensions that are tried are multiples of 1 / SLICES
# Eq. 4 of arXiv 2602.04919 alone
PAPER: Settings = {"scorer": "activation", "compensate": False}
SettingsAtSize = Callable[[Setup, float], Settings]
"""From what all cells share and the fraction of FFN neurons that PTL keeps at a size, the settings
with which a method comes to the same number of parameters."""


def nearest(candidates: Sequence[T], size: Callable[[T], int], target: int) -> T:
    """The candidate whose size is nearest to the target; sizes ascend with the candidates."""
    place = bisect.bisect_left(candidates, target, key=size)
    return min(
        candidates[max(0, place - 1) : place + 1],
        key=lambda candidate: abs(size(candidate) - target),
    )


def fewer_layers(setup: Setup, keep: float, layer_scorer: str) -> Settings:
    """Drop whole layers at once, as many as bring the parameters nearest to PTL's at this size.

    Nothing takes their place, as in the papers that drop layers.
    """
    total = num_layers(setup)

    def without(num_kept: int) -> Settings:
        num_dropped = total - num_kept
        return {
            "keep": 1.0,
            "rounds": 1,
            "drop_layers": num_dropped,
            "layers_per_round": num_dropped,
            "layer_scorer": layer_scorer,
            "compensate_layers": False,
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

    Its shortcut matrices count, and so does its language-model head, which no longer shares the
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
    return {
        "keep": keep,
        "scorer": "reference",
        "compensate": False,
        "protect": str(setup.english_text),
    }


def protected(setup: Setup, keep: float) -> Settings:
    """PTL that does not remove what matters most for the skill that the recovery data lacks."""
    return {"keep": keep, "protect": str(setup.unseen_text)}


# Every method at a size. Layer and slice methods prune once, as their papers do. Prune-Once has our
# score and compensation too, so that the difference to PTL is what the rounds are worth.
METHODS: dict[str, SettingsAtSize] = {
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
# the methods in the figures of accuracy against recovery tokens
CURVES = (
    "PTL",
    "Prune-Once",
    "ShortGPT",
    "SliceGPT",
    "CHOP",
    "random neurons",
    "reference rule",
)

# Other methods' scores as their papers run them: all neurons at once, and without our compensation
# (FLAP has its own bias). Random neurons in the same way are what each must beat; docs/peers.md.
PEERS: dict[str, SettingsAtSize] = {
    "PTL": ptl,
    "Prune-Once": METHODS["Prune-Once"],
    **{
        name: lambda setup, keep, scorer=scorer: {  # type: ignore[misc]
            "keep": keep,
            "rounds": 1,
            "scorer": scorer,
            "compensate": False,
        }
        for name, scorer in {
            "Minitron": "minitron",
            "Wanda": "wanda",
            "FLAP": "flap",
            "LLM-Pruner": "llm-pruner",
            "random, once": "random",
        }.items()
    },
}

# What decides which neurons go, in PTL's schedule, or which layers go, at once. All but the
# reference rule compensate.
SCORERS: dict[str, SettingsAtSize] = {
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

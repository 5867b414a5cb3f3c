"""The studies: which methods, at which sizes and recovery tokens, each table and figure shows."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.methods.contenders import (
    CURVES,
    DENSE,
    METHODS,
    PEERS,
    RECOVERIES,
    SCORERS,
    SettingsAtSize,
    protected,
    ptl,
)
from benchmarks.methods.setup import Settings, Setup, num_layers, planned
from ptl_fast.config.recovery import RecoverySettings

STEPS = (1, 2, 4, 8)  # rounds to the same size
ORDERS = ("neurons-then-layers", "layers-then-neurons", "alternate")
ORDER_KEEP = 0.65  # of the FFN neurons; layers go too


@dataclass(frozen=True)
class Draft:
    """A point of a study, before its settings are worked out and checked."""

    method: str
    keep: float
    """PTL's FFN fraction at this size, whatever the method removes."""
    settings_at_size: SettingsAtSize
    x: float | None = None
    """Place on the figure's axis: recovery tokens, or rounds."""
    changes: Settings = field(default_factory=dict)
    """Settings over those of ``settings_at_size``."""


def methods_study(setup: Setup) -> list[Draft]:
    """Table 1: every method at every size."""
    return [Draft(method, keep, make) for keep in setup.sizes for method, make in METHODS.items()]


def peers_study(setup: Setup) -> list[Draft]:
    """Other methods' scores at every size, as their papers run them."""
    return [Draft(peer, keep, make) for keep in setup.sizes for peer, make in PEERS.items()]


def order_study(setup: Setup) -> list[Draft]:
    """Table 4: which of neurons and layers goes first. An eighth of the layers goes."""
    num_dropped = max(1, num_layers(setup) // 8)
    # rounds for the neurons, and one for each layer
    num_rounds = len(planned({**setup.base, "keep": ORDER_KEEP})) - 1 + num_dropped
    common = {
        "drop_layers": num_dropped,
        "layers_per_round": 1,
        # the table is about the order alone, as the paper's is: nothing takes the layers' place
        "compensate_layers": False,
        **same_first_to_last_ratio(setup, num_rounds),
    }
    return [Draft(order, ORDER_KEEP, ptl, changes={**common, "order": order}) for order in ORDERS]


def rounds_study(setup: Setup) -> list[Draft]:
    """Figure 3: PTL's accuracy before and after each round's recovery."""
    return [Draft("PTL", keep, ptl) for keep in setup.sizes]


def steps_study(setup: Setup) -> list[Draft]:
    """Figure 4: the same size in one large step or many small ones."""
    return [
        Draft(
            "PTL", keep, ptl, rounds, {"rounds": rounds, **same_first_to_last_ratio(setup, rounds)}
        )
        for keep in setup.sizes
        for rounds in STEPS
    ]


def same_first_to_last_ratio(setup: Setup, num_rounds: int) -> Settings:
    """The growth of the rounds' shares of tokens at which the last share is as many times the first
    as in PTL's own number of rounds.

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
    if setup.unseen is None:  # another model than the bundled one
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
    "peers": peers_study,
    "order": order_study,
    "rounds": rounds_study,
    "steps": steps_study,
    "budget": budget_study,
    "scorers": scorers_study,
    "recovery": recovery_study,
    "unseen": unseen_study,
}

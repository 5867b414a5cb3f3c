"""The pruning schedule: the rounds of a run, the size that each leaves, and its recovery tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptl_fast.config.prune import PruneSettings
    from ptl_fast.model.widths import ExpertLimits


DEFAULT_ROUNDS = 5
Step = tuple[str, dict[str, int]]
"""(kind of round, the sizes that it changes)"""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of the schedule: what it removes, and how long the model then trains (recovery)."""

    number: int
    """From 1."""
    kind: str
    """A key of ROUND_KINDS."""
    width: int
    """FFN width after the round; with --threshold, the smallest width that it may leave."""
    num_layers: int
    """Number of layers after the round."""
    recovery_share: float
    """Fraction of the recovery tokens. The shares of a schedule sum to 1, without the round of kind
    final: --final-recovery has tokens of its own, on top.
    """
    hidden_size: int | None = None
    """In a hidden round, the size of the residual stream that is left."""
    num_experts: int | None = None
    """Routed experts of each layer after the round; None where none go in the run."""
    down_bias: bool = False
    """Whether the down projections have a bias after the round, in place of what went (FLAP)."""


def make_schedule(
    prune: "PruneSettings",
    shares: Callable[[int], list[float]],
    width: int,
    num_layers: int,
    experts: "ExpertLimits | None" = None,
) -> list[Round]:
    """Return the rounds that take a model of ``width`` and ``num_layers`` to the settings' target.

    If nothing is to be removed, the rounds are of kind none and only train. Experts go first: the
    tokens of those that are gone then show which neurons the others need.

    Args:
        shares: function from the number of rounds to each round's share of the recovery tokens.
        width: FFN width of the original model.
        num_layers: number of layers of the original model.
        experts: how many experts it has and needs; None: none may go.

    Raises:
        ValueError: the target cannot be reached; names the setting to change.
    """
    neuron_steps: list[Step] = [("neurons", {"width": each}) for each in _widths(prune, width)]
    layer_steps: list[Step] = [
        ("layers", {"num_layers": each}) for each in _layer_counts(prune, num_layers)
    ]
    steps: list[Step] = ORDERS[prune.order](neuron_steps, layer_steps)
    # each step changes one size, and the round states all
    size: dict[str, Any] = {"width": width, "num_layers": num_layers, "num_experts": None}
    if experts is not None and prune.keep_experts < 1:
        counts = expert_counts(prune, experts)
        steps = [("experts", {"num_experts": each}) for each in counts] + steps
        size["num_experts"] = experts.number
    schedule: list[Round] = []
    for kind, smaller in steps or [("none", {})] * (prune.rounds or 1):
        size |= smaller
        schedule.append(
            Round(
                number=len(schedule) + 1,
                kind=kind,
                **size,
                recovery_share=0.0,
            )
        )
    # the shares depend on the number of rounds, which is known only now
    return [
        replace(step, recovery_share=share)
        for step, share in zip(schedule, shares(len(schedule)), strict=True)
    ]


def with_final(schedule: list[Round]) -> list[Round]:
    """Append the round of --final-recovery, which removes nothing and only trains."""
    return [*schedule, replace(schedule[-1], number=len(schedule) + 1, kind="final")]


def with_bias(schedule: list[Round], width: int) -> list[Round]:
    """Give the down projections a bias in the rounds from the first that removes neurons on.

    Args:
        width: FFN width of the original model.
    """
    return [replace(step, down_bias=step.width < width) for step in schedule]


def check_protection(schedule: Sequence[Round], width: int, share: float) -> None:
    """Raise ValueError if some round must remove protected neurons to reach its width.

    Args:
        width: FFN width of the original model.
        share: fraction of each layer's neurons that --protect keeps.
    """
    # neurons are protected anew in each round, as a share of the width before it
    for step in schedule:
        if step.width < width and int(share * width) > step.width:
            raise ValueError(
                f"round {step.number} keeps {step.width} neurons a layer, but --protect-share"
                f" {share} protects {int(share * width)}; lower --protect-share, or remove fewer"
                " neurons in a round (more --rounds)"
            )
        width = step.width


def _widths(prune: "PruneSettings", width: int) -> list[int]:
    """The FFN width after each neuron round, descending; all are multiples of ``width_multiple``.

    With --threshold, the smallest width allowed in each round, which is always the target.
    """
    multiple = prune.width_multiple
    assert isinstance(multiple, int), "--width-multiple auto is decided before"
    target = round(prune.keep * width / multiple) * multiple
    if prune.keep == 1:
        return []
    if target == 0:
        raise ValueError(
            f"--keep {prune.keep} of {width} neurons rounds to zero width with --width-multiple"
            f" {multiple};"
            " raise --keep or lower --width-multiple"
        )
    if target >= width:
        raise ValueError(
            f"--keep {prune.keep} of {width} neurons rounds to the full width with"
            f" --width-multiple {multiple};"
            " lower --keep or --width-multiple, or give --keep 1 to remove no neurons"
        )
    # the data decides how many neurons each round removes, so only the target is a limit
    if prune.threshold is not None:
        return [target] * (prune.rounds or DEFAULT_ROUNDS)
    # the most rounds that can all end at different multiples
    available = -(-(width - target) // multiple)
    rounds = prune.rounds or min(DEFAULT_ROUNDS, available)
    if prune.neurons_per_round:
        rounds = -(-(width - target) // prune.neurons_per_round)
        if prune.rounds not in (None, rounds):
            raise ValueError(
                f"--neurons-per-round {prune.neurons_per_round} reaches width {target} in"
                f" {rounds} rounds, not in"
                f" --rounds {prune.rounds}; give one of the two"
            )
        exact = [
            float(width - prune.neurons_per_round * (index + 1)) for index in range(rounds - 1)
        ]
    elif prune.steps == "equal":
        exact = [width - (width - target) * (index + 1) / rounds for index in range(rounds - 1)]
    else:
        exact = [width * (target / width) ** ((index + 1) / rounds) for index in range(rounds - 1)]
    # widths between rounds may miss the exact ones by rounding; the target is exact
    widths = [round(value / multiple) * multiple for value in exact] + [target]
    if prune.steps == "proportional" and not prune.neurons_per_round and rounds <= available:
        widths = _apart(widths, multiple)
    # some round would remove nothing
    if len(set(widths)) < len(widths) or widths[0] >= width:
        raise ValueError(
            f"{rounds} rounds from width {width} to {target} need smaller steps than"
            f" --width-multiple {multiple};"
            f" use at most {available} rounds, larger --neurons-per-round, or a lower"
            " --width-multiple"
        )
    return widths


def _apart(widths: list[int], multiple: int) -> list[int]:
    """Raise widths until they are at least ``multiple`` apart; the last one stays.

    Proportional steps shrink, so that late ones may be rounded to zero.
    """
    apart = list(widths)
    for index in reversed(range(len(widths) - 1)):
        apart[index] = max(apart[index], apart[index + 1] + multiple)
    return apart


def _layer_counts(prune: "PruneSettings", num_layers: int) -> list[int]:
    """The number of layers after each layer round, descending; the last step may be smaller."""
    left = num_layers - prune.num_dropped_layers
    if left < 1:
        raise ValueError(
            f"--drop-layers {prune.num_dropped_layers} leaves none of the model's {num_layers}"
            " layers;"
            f" drop at most {num_layers - 1}"
        )
    counts = list(range(num_layers - prune.layers_per_round, left, -prune.layers_per_round))
    return [*counts, left] if left < num_layers else []


def expert_counts(prune: "PruneSettings", limits: "ExpertLimits") -> list[int]:
    """The number of routed experts of each layer after each expert round, descending.

    Raises:
        ValueError: so few, or so many, cannot stay.
    """
    number, groups = limits.number, limits.groups
    if not number:
        raise ValueError("--keep-experts: the model has no experts; leave it out")
    target = round(prune.keep_experts * number / groups) * groups
    of_groups = f", as many of each of its {groups} groups" if groups > 1 else ""
    if target < limits.fewest:
        raise ValueError(
            f"--keep-experts {prune.keep_experts} leaves {target} of {number} experts a"
            f" layer{of_groups}, and for the {limits.active} that a token goes to at least"
            f" {limits.fewest} must stay; raise --keep-experts to at least"
            f" {limits.fewest / number:.3g}"
        )
    if target >= number:
        raise ValueError(
            f"--keep-experts {prune.keep_experts} of {number} experts a layer{of_groups} rounds to"
            " all of them; lower --keep-experts, or leave it out"
        )
    step = prune.experts_per_round or number - target
    if step % groups:
        raise ValueError(
            f"--experts-per-round {step} is no multiple of the router's {groups} groups, which"
            f" keep equally many; give {-(-step // groups) * groups}"
        )
    return [*range(number - step, target, -step), target]


def _alternate(neurons: list[Step], layers: list[Step]) -> list[Step]:
    """Take steps from both lists in turn, neurons first; what is left of the longer one follows."""
    alternating: list[Step] = []
    while neurons or layers:
        alternating += neurons[:1] + layers[:1]
        neurons, layers = neurons[1:], layers[1:]
    return alternating


ORDERS: dict[str, Callable[[list[Step], list[Step]], list[Step]]] = {
    "neurons-then-layers": lambda neurons, layers: neurons + layers,
    "layers-then-neurons": lambda neurons, layers: layers + neurons,
    "alternate": _alternate,
}
"""{value of --order: function that merges (neuron steps, layer steps) into one list}"""


def token_shares(
    num_rounds: int, *, growth: float, num_tokens: int | None, smallest_tokens: int
) -> list[float]:
    """Return each round's share of the recovery tokens; they sum to 1.

    A round may use less of its share if it stops early.

    Args:
        growth: ratio of each round's tokens to those of the round before.
        num_tokens: recovery tokens of all rounds; None if the amount of data decides.
        smallest_tokens: minimum per round. Smaller shares are raised to it, at most to an equal
            split, and the others shrink in proportion. Not applied if ``num_tokens`` is None.
    """
    weights = [growth**index for index in range(num_rounds)]
    if num_tokens is None:
        return [weight / sum(weights) for weight in weights]
    smallest = min(1 / num_rounds, smallest_tokens / num_tokens)
    # raising one share scales the others down, which may push more of them below the minimum
    raised: set[int] = set()
    while True:
        scale = (1 - smallest * len(raised)) / (
            sum(weight for index, weight in enumerate(weights) if index not in raised) or 1
        )
        shares = [
            smallest if index in raised else scale * weight for index, weight in enumerate(weights)
        ]
        too_small = {index for index, share in enumerate(shares) if share < smallest} - raised
        if not too_small:
            return shares
        raised |= too_small

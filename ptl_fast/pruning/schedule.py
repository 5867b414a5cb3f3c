"""The schedule of a run: which rounds there are, the size that each leaves, and its share of the
recovery tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptl_fast.config.prune import PruneSettings


DEFAULT_ROUNDS = 5
Step = tuple[str, dict[str, int]]
"""(kind of round, the sizes that it changes)"""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of the schedule: the size that it leaves, and its share of the recovery tokens.

    Shares sum to 1, without that of a last round of kind final: --final-recovery, which removes
    nothing, has its tokens on top."""

    number: int
    kind: str
    """A key of ROUND_KINDS."""
    width: int
    """With --threshold, the lowest width that the round may leave."""
    num_layers: int
    recovery_share: float
    hidden_size: int | None = None
    """For a hidden round: the dimensions of the residual stream that stay."""


def make_schedule(
    prune: "PruneSettings", shares: Callable[[int], list[float]], width: int, num_layers: int
) -> list[Round]:
    """Return the rounds that take an FFN of ``width`` and ``num_layers`` to the target.

    Args:
        shares: from the number of rounds to each one's share of the recovery tokens.

    Raises:
        ValueError: the target cannot be reached; names the setting to change.
    """
    neuron_steps: list[Step] = [("neurons", {"width": each}) for each in _widths(prune, width)]
    layer_steps: list[Step] = [
        ("layers", {"num_layers": each}) for each in _layer_counts(prune, num_layers)
    ]
    steps = ORDERS[prune.order](neuron_steps, layer_steps)
    size = {"width": width, "num_layers": num_layers}
    schedule: list[Round] = []
    for kind, smaller in steps or [("none", {})] * (prune.rounds or 1):
        size |= smaller
        schedule.append(Round(number=len(schedule) + 1, kind=kind, recovery_share=0.0, **size))
    return [
        replace(step, recovery_share=share)
        for step, share in zip(schedule, shares(len(schedule)), strict=True)
    ]


def with_final(schedule: list[Round]) -> list[Round]:
    """The schedule, followed by a round for --final-recovery, which removes nothing."""
    return [*schedule, replace(schedule[-1], number=len(schedule) + 1, kind="final")]


def check_protection(schedule: Sequence[Round], width: int, share: float) -> None:
    """Raise ValueError where a round would have to remove neurons that --protect keeps.

    Args:
        width: of the original model.
    """
    for step in schedule:
        if step.width < width and int(share * width) > step.width:
            raise ValueError(
                f"round {step.number} keeps {step.width} neurons a layer, but --protect-share"
                f" {share} protects {int(share * width)}; lower --protect-share, or remove fewer"
                " neurons in a round (more --rounds)"
            )
        width = step.width


def _widths(prune: "PruneSettings", width: int) -> list[int]:
    """The width after each neuron round (with --threshold, the lowest allowed), descending
    multiples of ``width_multiple``.
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
    if prune.threshold is not None:
        return [target] * (prune.rounds or DEFAULT_ROUNDS)
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
    widths = [round(value / multiple) * multiple for value in exact] + [target]
    if prune.steps == "proportional" and not prune.neurons_per_round and rounds <= available:
        widths = _apart(widths, multiple)
    if len(set(widths)) < len(widths) or widths[0] >= width:
        raise ValueError(
            f"{rounds} rounds from width {width} to {target} need smaller steps than"
            f" --width-multiple {multiple};"
            f" use at most {available} rounds, larger --neurons-per-round, or a lower"
            " --width-multiple"
        )
    return widths


def _apart(widths: list[int], multiple: int) -> list[int]:
    """Widths at least ``multiple`` apart, the last one as it was: small steps may round to none."""
    apart = list(widths)
    for index in reversed(range(len(widths) - 1)):
        apart[index] = max(apart[index], apart[index + 1] + multiple)
    return apart


def _layer_counts(prune: "PruneSettings", num_layers: int) -> list[int]:
    left = num_layers - prune.drop_layers
    if left < 1:
        raise ValueError(
            f"--drop-layers {prune.drop_layers} leaves none of the model's {num_layers} layers;"
            f" drop at most {num_layers - 1}"
        )
    counts = list(range(num_layers - prune.layers_per_round, left, -prune.layers_per_round))
    return [*counts, left] if left < num_layers else []


def _alternate(neurons: list[Step], layers: list[Step]) -> list[Step]:
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
"""{--order: how the steps of both kinds follow one another}"""


def token_shares(
    num_rounds: int, *, growth: float, num_tokens: int | None, smallest_tokens: int
) -> list[float]:
    """Each round's part of the recovery tokens, as long as no round ends early; they sum to 1.

    Args:
        growth: how many times the tokens of the round before each round gets.
        num_tokens: of all rounds, or None where the data decides.
        smallest_tokens: a smaller part is raised to this.
    """
    weights = [growth**index for index in range(num_rounds)]
    if num_tokens is None:
        return [weight / sum(weights) for weight in weights]
    smallest = min(1 / num_rounds, smallest_tokens / num_tokens)
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

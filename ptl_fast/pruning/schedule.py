"""The schedule of a run: which rounds there are, the size that each leaves, and its share of the
recovery tokens.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ptl_fast.config.config import Config


DEFAULT_ROUNDS = 5
HIDDEN_MULTIPLE = 8  # of a sliced hidden size, as in SliceGPT's code
Kind = Literal["neurons", "layers", "hidden", "none", "final"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of the schedule: the size that it leaves, and its share of the recovery tokens.

    Shares sum to 1, without that of a last round of kind final: --final-recovery, which removes
    nothing, has its tokens on top."""

    number: int
    kind: Kind
    width: int
    """With --threshold, the lowest width that the round may leave."""
    num_layers: int
    recovery_share: float
    hidden_size: int | None = None
    """For a hidden round: the dimensions of the residual stream that stay."""


def make_schedule(config: "Config", width: int, num_layers: int) -> list[Round]:
    """Return the rounds that take an FFN of ``width`` and ``num_layers`` to the target.

    Raises:
        ValueError: the target cannot be reached; names the setting to change.
    """
    widths = _widths(config, width)
    layer_counts = _layer_counts(config, num_layers)
    kinds: list[Kind] = _order(config.order, len(widths), len(layer_counts))
    if not kinds:
        kinds = ["none"] * (config.rounds or 1)
    shares = _shares(config, len(kinds))
    schedule = []
    for number, (kind, share) in enumerate(zip(kinds, shares, strict=True), start=1):
        if kind == "neurons":
            if (
                config.protect is not None
                and config.threshold is None
                and config.scorer not in ("reference", "reconstruction")
            ):
                _check_protection(number, width, widths[0], config.protect_share)
            width = widths.pop(0)
        elif kind == "layers":
            num_layers = layer_counts.pop(0)
        schedule.append(
            Round(
                number=number, kind=kind, width=width, num_layers=num_layers, recovery_share=share
            )
        )
    return schedule


def make_slicing_schedule(
    config: "Config", width: int, num_layers: int, hidden_size: int
) -> list[Round]:
    """Return the one round of the SliceGPT baseline.

    Raises:
        ValueError: the target rounds to zero or to all dimensions.
    """
    assert config.slice_hidden is not None
    sliced = round(config.slice_hidden * hidden_size / HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE
    if not 0 < sliced < hidden_size:
        raise ValueError(
            f"--slice-hidden {config.slice_hidden} of {hidden_size} dimensions rounds to {sliced},"
            f" a multiple of {HIDDEN_MULTIPLE};"
            f" it must be at least {HIDDEN_MULTIPLE} and below {hidden_size}"
        )
    return [
        Round(
            number=1,
            kind="hidden",
            width=width,
            num_layers=num_layers,
            recovery_share=1.0,
            hidden_size=sliced,
        )
    ]


def with_final(schedule: list[Round], config: "Config") -> list[Round]:
    """The schedule, followed by --final-recovery if there is one."""
    if config.final_recovery is None:
        return schedule
    return [*schedule, replace(schedule[-1], number=len(schedule) + 1, kind="final")]


def _check_protection(number: int, before: int, after: int, share: float) -> None:
    if int(share * before) > after:
        raise ValueError(
            f"round {number} keeps {after} neurons a layer, but --protect-share {share} protects"
            f" {int(share * before)};"
            " lower --protect-share, or remove fewer neurons in a round (more --rounds)"
        )


def _widths(config: "Config", width: int) -> list[int]:
    """The width after each neuron round (with --threshold, the lowest allowed), descending
    multiples of ``width_multiple``.
    """
    multiple = config.width_multiple
    assert isinstance(multiple, int), "compress.py decides what auto is"
    target = round(config.keep * width / multiple) * multiple
    if config.keep == 1:
        return []
    if target == 0:
        raise ValueError(
            f"--keep {config.keep} of {width} neurons rounds to zero width with --width-multiple"
            f" {multiple};"
            " raise --keep or lower --width-multiple"
        )
    if target >= width:
        raise ValueError(
            f"--keep {config.keep} of {width} neurons rounds to the full width with"
            f" --width-multiple {multiple};"
            " lower --keep or --width-multiple, or give --keep 1 to remove no neurons"
        )
    if config.threshold is not None:
        return [target] * (config.rounds or DEFAULT_ROUNDS)
    available = -(-(width - target) // multiple)
    rounds = config.rounds or min(DEFAULT_ROUNDS, available)
    if config.neurons_per_round:
        rounds = -(-(width - target) // config.neurons_per_round)
        if config.rounds not in (None, rounds):
            raise ValueError(
                f"--neurons-per-round {config.neurons_per_round} reaches width {target} in"
                f" {rounds} rounds, not in"
                f" --rounds {config.rounds}; give one of the two"
            )
        exact = [
            float(width - config.neurons_per_round * (index + 1)) for index in range(rounds - 1)
        ]
    elif config.steps == "equal":
        exact = [width - (width - target) * (index + 1) / rounds for index in range(rounds - 1)]
    else:
        exact = [width * (target / width) ** ((index + 1) / rounds) for index in range(rounds - 1)]
    widths = [round(value / multiple) * multiple for value in exact] + [target]
    if config.steps == "proportional" and not config.neurons_per_round and rounds <= available:
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


def _layer_counts(config: "Config", num_layers: int) -> list[int]:
    left = num_layers - config.drop_layers
    if left < 1:
        raise ValueError(
            f"--drop-layers {config.drop_layers} leaves none of the model's {num_layers} layers;"
            f" drop at most {num_layers - 1}"
        )
    counts = list(range(num_layers - config.layers_per_round, left, -config.layers_per_round))
    return [*counts, left] if left < num_layers else []


def _order(order: str, num_neuron_rounds: int, num_layer_rounds: int) -> list[Kind]:
    neurons: list[Kind] = ["neurons"] * num_neuron_rounds
    layers: list[Kind] = ["layers"] * num_layer_rounds
    if order == "neurons-then-layers":
        return neurons + layers
    if order == "layers-then-neurons":
        return layers + neurons
    alternating: list[Kind] = []
    while neurons or layers:
        alternating += neurons[:1] + layers[:1]
        neurons, layers = neurons[1:], layers[1:]
    return alternating


def _shares(config: "Config", num_rounds: int) -> list[float]:
    """Each round's part of the recovery tokens, as long as no round ends early; they sum to 1.

    With --recovery-tokens, a part that is too small to train on is raised to the tokens of one
    optimizer step, and no less than two sequences (documents are not cut between rounds, so a part
    of just one sequence may fall short of it).
    """
    growth = 1.0 if config.recovery_split == "equal" else config.recovery_growth
    weights = [growth**index for index in range(num_rounds)]
    if config.recovery_tokens is None:
        return [weight / sum(weights) for weight in weights]
    smallest = min(
        1 / num_rounds,
        config.sequence_length * max(2, config.global_batch) / config.recovery_tokens,
    )
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

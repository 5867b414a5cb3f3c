"""The schedule of a run, and the PruningPlan of a round: what goes and what stays."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.config import Config

DEFAULT_ROUNDS = 5
HIDDEN_MULTIPLE = 8  # of a sliced hidden size, as in SliceGPT's code
Kind = Literal["neurons", "layers", "hidden", "none", "final"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of the schedule: the size that it leaves, and its share of the recovery tokens.

    Shares sum to 1, without that of a last round of kind final: --final-recovery, which removes nothing, has its tokens on top.
    """

    number: int
    kind: Kind
    width: int
    """With --threshold, the lowest width that the round may leave."""
    num_layers: int
    recovery_share: float
    hidden_size: int | None = None
    """For a hidden round: the dimensions of the residual stream that stay."""


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What one round removes. Indices are those of the model before the round."""

    round: int
    kind: Kind
    scorer: str
    width: int
    num_layers: int
    kept_neurons: list[list[int]] | None
    """Per layer, ascending; None when no neurons go."""
    dropped_layers: list[int]
    num_rescued: int
    """Neurons a layer (mean) that would have gone, had --protect not kept them. Scorer reconstruction keeps none by rank: 0."""
    layer_scores: list[float] | None
    """For a layer round: the score of every layer."""
    num_redundant: list[int] | None = None
    """Neurons of each layer that --threshold, or the rule of scorer reference, calls redundant; protected ones do not count."""
    hidden_size: int | None = None
    """For a hidden round: the dimensions of the residual stream that stay."""
    highest_removed: list[float] | None = None
    """The highest score that went: of each layer's neurons, or of the layers. Above ``lowest_kept`` where --protect kept others."""
    lowest_kept: list[float] | None = None
    """The lowest score that stayed, likewise."""

    @property
    def removes_nothing(self) -> bool:
        """Whether no neuron went although the round was there for that: --threshold found too few redundant ones."""
        return self.kind == "neurons" and self.kept_neurons is None


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
            if config.protect is not None and config.threshold is None and config.scorer not in ("reference", "reconstruction"):
                _check_protection(number, width, widths[0], config.protect_share)
            width = widths.pop(0)
        elif kind == "layers":
            num_layers = layer_counts.pop(0)
        schedule.append(Round(number=number, kind=kind, width=width, num_layers=num_layers, recovery_share=share))
    return schedule


def make_slicing_schedule(config: "Config", width: int, num_layers: int, hidden_size: int) -> list[Round]:
    """Return the one round of the SliceGPT baseline.

    Raises:
        ValueError: the target rounds to zero or to all dimensions.
    """
    assert config.slice_hidden is not None
    sliced = round(config.slice_hidden * hidden_size / HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE
    if not 0 < sliced < hidden_size:
        raise ValueError(
            f"--slice-hidden {config.slice_hidden} of {hidden_size} dimensions rounds to {sliced}, a multiple of {HIDDEN_MULTIPLE};"
            f" it must be at least {HIDDEN_MULTIPLE} and below {hidden_size}"
        )
    return [Round(number=1, kind="hidden", width=width, num_layers=num_layers, recovery_share=1.0, hidden_size=sliced)]


def with_final(schedule: list[Round], config: "Config") -> list[Round]:
    """The schedule, followed by --final-recovery if there is one."""
    if config.final_recovery is None:
        return schedule
    return [*schedule, replace(schedule[-1], number=len(schedule) + 1, kind="final")]


def plan_neurons(
    step: Round, scores_LI: "Tensor", protected_LK: "Tensor | None", scorer: str, redundant_LI: "Tensor | None" = None
) -> PruningPlan:
    """Keep the ``step.width`` most important neurons of each layer, protected ones first.

    Args:
        scores_LI: (num_layers, width) importance.
        protected_LK: (num_layers, num_protected) int64 indices that must stay, or None.
        redundant_LI: (num_layers, width) bool, which neurons some rule calls redundant: the plan says how many there were.
    """
    ranked_LI = scores_LI.clone()
    if protected_LK is not None:
        ranked_LI.scatter_(1, protected_LK, float("inf"))
    kept_LK = ranked_LI.argsort(dim=1, descending=True, stable=True)[:, : step.width].sort(dim=1).values
    highest_removed, lowest_kept = _margins(scores_LI, kept_LK)
    return PruningPlan(
        round=step.number,
        kind="neurons",
        scorer=scorer,
        width=step.width,
        num_layers=step.num_layers,
        kept_neurons=kept_LK.tolist(),
        dropped_layers=[],
        num_rescued=_num_rescued(scores_LI, protected_LK, step.width),
        layer_scores=None,
        num_redundant=None if redundant_LI is None else redundant_LI.sum(1).tolist(),
        highest_removed=highest_removed,
        lowest_kept=lowest_kept,
    )


def plan_redundant(
    step: Round, scores_LI: "Tensor", protected_LK: "Tensor | None", scorer: str, redundant_LI: "Tensor", multiple: int
) -> PruningPlan:
    """Remove neurons that are redundant (Eq. 3 of arXiv 2602.04919), as many in each layer as in the layer that has fewest.

    The width that stays is a multiple of ``multiple``, and at least ``step.width``; the lowest scores go first. Protected neurons
    are not redundant. If nothing can go, the plan's ``removes_nothing`` says so.

    Args:
        redundant_LI: (num_layers, width) bool, the neurons whose score is at most the threshold; the others are as in plan_neurons.
    """
    if protected_LK is not None:
        redundant_LI = redundant_LI.scatter(1, protected_LK, False)
    before = scores_LI.shape[1]
    lowest = before - int(redundant_LI.sum(1).min())
    width = min(before, max(step.width, -(-lowest // multiple) * multiple))
    decided = plan_neurons(replace(step, width=width), scores_LI, protected_LK, scorer, redundant_LI)
    return decided if width < before else replace(decided, kept_neurons=None, highest_removed=None, lowest_kept=None)


def plan_layers(step: Round, scores_L: "Tensor", scorer: str) -> PruningPlan:
    """Drop the least important layers, (num_layers,) importance, until ``step.num_layers`` are left."""
    ranked = scores_L.argsort(stable=True)
    dropped, kept = (each.sort().values for each in ranked.split([len(scores_L) - step.num_layers, step.num_layers]))
    highest_removed, lowest_kept = _margins(scores_L[None], kept[None])
    return PruningPlan(
        round=step.number,
        kind="layers",
        scorer=scorer,
        width=step.width,
        num_layers=step.num_layers,
        kept_neurons=None,
        dropped_layers=dropped.tolist(),
        num_rescued=0,
        layer_scores=scores_L.tolist(),
        highest_removed=highest_removed,
        lowest_kept=lowest_kept,
    )


def plan_nothing(step: Round) -> PruningPlan:
    """A round that only trains, or slices the residual stream: which directions go is found while slicing, block after block."""
    return PruningPlan(
        round=step.number,
        kind=step.kind,
        scorer="",
        width=step.width,
        num_layers=step.num_layers,
        kept_neurons=None,
        dropped_layers=[],
        num_rescued=0,
        layer_scores=None,
        hidden_size=step.hidden_size,
    )


def _margins(scores_LI: "Tensor", kept_LK: "Tensor") -> tuple[list[float] | None, list[float] | None]:
    """highest_removed and lowest_kept of each row of scores, to six digits, which ranks agree on; None where nothing goes."""
    if kept_LK.shape[1] == scores_LI.shape[1]:
        return None, None
    margins = scores_LI.scatter(1, kept_LK, float("-inf")).amax(1), scores_LI.gather(1, kept_LK).amin(1)
    highest, lowest = ([float(f"{score:.6g}") for score in each.tolist()] for each in margins)
    return highest, lowest


def protect(scores_LI: "Tensor", share: float) -> "Tensor":
    """Return the indices of each layer's neurons that score highest on the protected corpus, (num_layers, num_protected)."""
    return scores_LI.topk(int(share * scores_LI.shape[1]), dim=1).indices


def _check_protection(number: int, before: int, after: int, share: float) -> None:
    if int(share * before) > after:
        raise ValueError(
            f"round {number} keeps {after} neurons a layer, but --protect-share {share} protects {int(share * before)};"
            " lower --protect-share, or remove fewer neurons in a round (more --rounds)"
        )


def _num_rescued(scores_LI: "Tensor", protected_LK: "Tensor | None", width: int) -> int:
    """Mean number of neurons a layer that would have gone without protection."""
    if protected_LK is None:
        return 0
    rank_LI = scores_LI.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return round((rank_LI.gather(1, protected_LK) >= width).sum().item() / len(scores_LI))


def _widths(config: "Config", width: int) -> list[int]:
    """The width after each neuron round (with --threshold, the lowest allowed), descending multiples of ``width_multiple``."""
    multiple = config.width_multiple
    assert isinstance(multiple, int), "compress.py decides what auto is"
    target = round(config.keep * width / multiple) * multiple
    if config.keep == 1:
        return []
    if target == 0:
        raise ValueError(
            f"--keep {config.keep} of {width} neurons rounds to zero width with --width-multiple {multiple};"
            " raise --keep or lower --width-multiple"
        )
    if target >= width:
        raise ValueError(
            f"--keep {config.keep} of {width} neurons rounds to the full width with --width-multiple {multiple};"
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
                f"--neurons-per-round {config.neurons_per_round} reaches width {target} in {rounds} rounds, not in"
                f" --rounds {config.rounds}; give one of the two"
            )
        exact = [float(width - config.neurons_per_round * (index + 1)) for index in range(rounds - 1)]
    elif config.steps == "equal":
        exact = [width - (width - target) * (index + 1) / rounds for index in range(rounds - 1)]
    else:
        exact = [width * (target / width) ** ((index + 1) / rounds) for index in range(rounds - 1)]
    widths = [round(value / multiple) * multiple for value in exact] + [target]
    if config.steps == "proportional" and not config.neurons_per_round and rounds <= available:
        widths = _apart(widths, multiple)
    if len(set(widths)) < len(widths) or widths[0] >= width:
        raise ValueError(
            f"{rounds} rounds from width {width} to {target} need smaller steps than --width-multiple {multiple};"
            f" use at most {available} rounds, larger --neurons-per-round, or a lower --width-multiple"
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
            f"--drop-layers {config.drop_layers} leaves none of the model's {num_layers} layers; drop at most {num_layers - 1}"
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

    With --recovery-tokens, a part that is too small to train on is raised to the tokens of one optimizer step, and no less than
    two sequences (documents are not cut between rounds, so a part of just one sequence may fall short of it).
    """
    growth = 1.0 if config.recovery_split == "equal" else config.recovery_growth
    weights = [growth**index for index in range(num_rounds)]
    if config.recovery_tokens is None:
        return [weight / sum(weights) for weight in weights]
    smallest = min(1 / num_rounds, config.sequence_length * max(2, config.global_batch) / config.recovery_tokens)
    raised: set[int] = set()
    while True:
        scale = (1 - smallest * len(raised)) / (sum(weight for index, weight in enumerate(weights) if index not in raised) or 1)
        shares = [smallest if index in raised else scale * weight for index, weight in enumerate(weights)]
        too_small = {index for index, share in enumerate(shares) if share < smallest} - raised
        if not too_small:
            return shares
        raised |= too_small

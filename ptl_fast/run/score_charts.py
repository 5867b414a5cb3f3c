"""Charts of what a run's scores decided: their distribution, what went, and how layers matter.

They read the run's folder (ptl_fast.run.history); rounds that ranked no neurons have none.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptl_fast.base import svg
from ptl_fast.base.html_page import card
from ptl_fast.run.history import RoundHistory, cut

if TYPE_CHECKING:
    from torch import Tensor

NUM_BINS = 40
NUM_RANKS = 24  # columns of the heat map
MOST_DECADES = 4  # of scores on either side of the cut that a histogram shows


def distributions(rounds: Sequence[RoundHistory]) -> list[str]:
    """A histogram of each round's neuron scores, all layers together, with the cut."""
    charts = []
    for each in rounds:
        if each.ranked is None or each.plan.highest_removed is None:
            continue
        values, is_logarithm = _from_the_cut(each)
        low, high = float(values.min()), float(values.max())
        # the cut stays in sight
        low, high = min(low, -1e-9), max(high, 1e-9)
        counts = values.histc(NUM_BINS, low, high).int().tolist()
        what = "log10(score / its layer's cut)" if is_logarithm else "score less its layer's cut"
        name = f"Scores of round {each.number}"
        counted = "neurons" if each.plan.kept_experts is None else "experts"
        chart = svg.histogram(counts, low, high, title=name, x_title=what, counted=counted, cut=0.0)
        charts.append(
            card(
                name,
                chart,
                f"{counted.capitalize()} of all layers; a score estimates how much the model needs"
                " each. Left of the line went, right of it stayed: a valley at the"
                " line is an easy choice, a peak a hard one.",
            )
        )
    return charts


def _from_the_cut(history: RoundHistory) -> "tuple[Tensor, bool]":
    """Every score's place beside its layer's cut: the logarithm of their ratio if all are positive
    (dead neurons, of score 0, stand at the left end), else the difference; and which it is.
    """
    import torch

    scores = history.ranked
    assert scores is not None
    cuts = [cut(history, row) for row in range(len(scores))]
    assert None not in cuts
    cuts_L1 = torch.tensor(cuts, dtype=torch.float64)[:, None]
    if bool((scores < 0).any()) or bool((cuts_L1 <= 0).any()):
        return (scores - cuts_L1).flatten(), False
    ratio = (scores / cuts_L1).clamp(10.0**-MOST_DECADES, 10.0**MOST_DECADES)
    return ratio.log10().flatten(), True


def what_went(rounds: Sequence[RoundHistory]) -> str:
    """A heat map of the neurons that went: a row for each layer of the original, columns by rank in
    the first round that scored them all; empty if none did.
    """
    first = next((each for each in rounds if each.ranked is not None), None)
    if first is None:
        return ""
    if first.rows is not None:
        return _which_experts(rounds)
    assert first.scores_LI is not None
    rows = []
    for place, layer in enumerate(first.layers):
        staying = _staying(rounds, layer)
        gone_I = [neuron not in staying for neuron in first.neurons_LI[place].tolist()]
        order = first.scores_LI[place].argsort(stable=True).tolist()
        rows.append((f"layer {layer}", _shares([gone_I[each] for each in order])))
    name = "What went, by layer"
    return card(
        name,
        svg.heat_map(rows, title=name, x_title=f"rank in round {first.number}, lowest first"),
        "The stronger the colour, the more of these neurons are gone by now. A sharp edge: later"
        " rounds agreed with the first; a full row: the layer was dropped.",
    )


def _which_experts(rounds: Sequence[RoundHistory]) -> str:
    """The same of whole experts: a row for each layer that had some; empty if none went."""
    first = next((each for each in rounds if each.plan.expert_scores is not None), None)
    if first is None or first.plan.expert_scores is None:
        return ""
    rows, last = [], rounds[-1]
    for scores, (layer, experts) in zip(
        first.plan.expert_scores, first.experts.items(), strict=True
    ):
        there = layer in last.experts and layer not in last.dropped
        staying = last.kept_experts(layer) if there else []
        order = sorted(range(len(experts)), key=scores.__getitem__)
        rows.append((f"layer {layer}", _shares([experts[each] not in staying for each in order])))
    name = "Which experts went, by layer"
    return card(
        name,
        svg.heat_map(rows, title=name, x_title=f"rank in round {first.number}, lowest first"),
        "The stronger the colour, the more of these experts are gone by now; a full row: the layer"
        " was dropped.",
    )


def _staying(rounds: Sequence[RoundHistory], layer: int) -> set[int]:
    """The original numbers of a layer's neurons that are still there after the last round."""
    last = rounds[-1]
    if layer not in last.layers or layer in last.dropped:
        return set()
    row = last.layers.index(layer)
    neurons = last.neurons_LI[row].tolist()
    kept = last.plan.kept_neurons
    return set(neurons if kept is None else (neurons[each] for each in kept[row]))


def _shares(gone: Sequence[bool]) -> list[float]:
    """The share that is gone in each of NUM_RANKS equal parts (or as many as there are)."""
    parts = min(NUM_RANKS, len(gone))
    borders = [len(gone) * number // parts for number in range(parts + 1)]
    return [sum(gone[start:end]) / (end - start) for start, end in itertools.pairwise(borders)]


def importance(rounds: Sequence[RoundHistory]) -> str:
    """Bars of how much each layer of the original does, as the first round measured it."""
    first = next((each for each in rounds if each.changes_L is not None), None)
    if first is None or first.changes_L is None:
        return ""
    rows = [
        (f"layer {layer}", [max(0.0, change)])
        for layer, change in zip(first.layers, first.changes_L, strict=True)
    ]
    name = "How much each layer does"
    return card(
        name,
        svg.stacked_bars(rows, ["change"], title=name),
        f"1 less the mean cosine of the residual stream before and after the layer, in round"
        f" {first.number}: near 0, the layer changes little and costs little to drop.",
    )

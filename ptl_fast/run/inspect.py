"""Why a neuron went or stayed, from a run's folder.

    ptl-fast inspect runs/demo --layer 3 --neuron 17
    ptl-fast inspect runs/mixture --layer 3 --expert 5 --neuron 17

Layers, experts and neurons have the original model's numbers, whatever moved in between.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ptl_fast.base import markdown
from ptl_fast.base.console import tell_error
from ptl_fast.run import failures, history
from ptl_fast.run.history import RoundHistory

HEADER = ["round", "neurons before", "went", "highest that went", "lowest that stayed", "layer"]
MIXTURE_HEADER = [
    "round",
    "experts before",
    "experts that went",
    "highest that went",
    "lowest that stayed",
    "neurons of each before",
    "neurons that went",
    "layer",
]


def main(arguments: Sequence[str]) -> int:
    """Print what became of a layer, or of a neuron of it.

    Returns:
        The exit code: 2 for what the user can mend, told in one line.
    """
    chosen = _parser().parse_args(arguments)
    try:
        rounds = history.read(chosen.run)
        if not rounds:
            raise ValueError(f"{chosen.run} has no finished round yet")
        _check(rounds[0], chosen.layer, chosen.expert, chosen.neuron)
        layer, expert = chosen.layer, chosen.expert
        if chosen.neuron is not None:
            print("\n".join(neuron_lines(rounds, layer, chosen.neuron, expert or 0)))
        elif expert is not None:
            print("\n".join(expert_lines(rounds, layer, expert)))
        elif layer in rounds[0].experts:
            print(mixture_text(rounds, layer))
        else:
            print(layer_text(rounds, layer))
    except (ValueError, OSError) as error:
        tell_error(failures.told(error))
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ptl-fast inspect",
        description="Say why a neuron went or stayed, or what a layer lost.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--layer", type=int, required=True, help="its number in the original, from 0"
    )
    parser.add_argument(
        "--expert",
        type=int,
        help="in a mixture of experts, its number in the original's layer, from 0; after the"
        " experts come the FFNs beside them that have their width",
    )
    parser.add_argument("--neuron", type=int, help="its number in the original's layer, from 0")
    return parser


def _check(first: RoundHistory, layer: int, expert: int | None, neuron: int | None) -> None:
    """Raise ValueError for a layer, expert or neuron that the original does not have."""
    num_layers, width = len(first.layers), first.neurons_LI.shape[1]
    if not 0 <= layer < num_layers:
        raise ValueError(f"--layer {layer}: the original has layers 0 to {num_layers - 1}")
    own = [each for of, each in first.rows or [] if of == layer]
    if expert is not None and expert not in own:
        has = f"FFNs 0 to {len(own) - 1}" if own else "no experts"
        raise ValueError(f"--expert {expert}: layer {layer} of the original has {has}")
    if neuron is None:
        return
    if first.rows is not None and expert is None:
        raise ValueError(f"--neuron {neuron}: give --expert too, whose neuron it is")
    if not 0 <= neuron < width:
        raise ValueError(f"--neuron {neuron}: the original's layers have neurons 0 to {width - 1}")


def expert_lines(rounds: Sequence[RoundHistory], layer: int, expert: int) -> list[str]:
    """A sentence for each round up to the one in which the expert went, then what came of it."""
    lines, name = [], f"Expert {expert} of layer {layer}"
    for each in rounds:
        row = each.row(layer, expert)
        assert row is not None, "the loop ends with the round in which it went"
        if layer in each.dropped:
            lines.append(f"Round {each.number}: {_layer_went(each, layer)}")
            return [*lines, f"{name} went with its layer in round {each.number}."]
        stays = expert not in each.experts.get(layer, []) or expert in each.kept_experts(layer)
        lines.append(f"Round {each.number}: {_expert_told(each, layer, expert, stays)}")
        if not stays:
            return [*lines, f"{name} went in round {each.number}."]
    return [*lines, f"{name} is still there after round {rounds[-1].number}."]


def _expert_told(each: RoundHistory, layer: int, expert: int, stays: bool) -> str:
    """What a round decided on an expert, and from which score."""
    experts, plan = each.experts.get(layer, []), each.plan
    if plan.kept_neurons is not None:
        return f"stayed, with {plan.width} of its {each.neurons_LI.shape[1]} neurons."
    if plan.expert_scores is None or expert not in experts:
        return "no experts were to go." if expert in experts else "it is no routed expert."
    scores = plan.expert_scores[each.mixture(layer)]
    score = scores[experts.index(expert)]
    lower = sum(other < score for other in scores)
    return (
        f"{'stayed' if stays else 'went'}: score {score:.6g} by {plan.scorer}, {lower} of the"
        f" layer's {len(scores)} experts scored lower; {plan.num_experts} stayed."
    )


def mixture_text(rounds: Sequence[RoundHistory], layer: int) -> str:
    """A table of what each round took from a layer with experts."""
    lines = [MIXTURE_HEADER]
    for each in rounds:
        if layer not in each.layers:
            break
        before, width = each.experts[layer], each.neurons_LI.shape[1]
        gone = [expert for expert in before if expert not in each.kept_experts(layer)]
        margins = ["", ""]
        if gone and each.plan.highest_removed and each.plan.lowest_kept:
            row = each.mixture(layer)
            margins = [f"{each.plan.highest_removed[row]:.6g}", f"{each.plan.lowest_kept[row]:.6g}"]
        went = 0 if each.plan.kept_neurons is None else width - each.plan.width
        lines.append(
            [
                str(each.number),
                str(len(before)),
                ", ".join(map(str, gone)) or "none",
                *margins,
                str(width),
                str(went),
                _layer(each, layer),
            ]
        )
    return markdown.table(lines)


def neuron_lines(
    rounds: Sequence[RoundHistory], layer: int, neuron: int, expert: int = 0
) -> list[str]:
    """A sentence for each round up to the one in which the neuron went, then what came of it."""
    of_expert = f"expert {expert} of " if rounds[0].rows is not None else ""
    lines, name = [], f"Neuron {neuron} of {of_expert}layer {layer}"
    for each in rounds:
        place = each.place(layer, neuron, expert)
        assert place is not None, "the loop ends with the round in which it went"
        if layer in each.dropped:
            lines.append(f"Round {each.number}: {_layer_went(each, layer)}")
            return [*lines, f"{name} went with its layer in round {each.number}."]
        if expert in each.experts.get(layer, []) and expert not in each.kept_experts(layer):
            lines.append(f"Round {each.number}: {_expert_told(each, layer, expert, False)}")
            return [*lines, f"{name} went with its expert in round {each.number}."]
        stays = _stays(each, *place)
        lines.append(f"Round {each.number}: {_told(each, *place, stays)}")
        if not stays:
            return [*lines, f"{name} went in round {each.number}."]
    return [*lines, f"{name} is still there after round {rounds[-1].number}."]


def _stays(each: RoundHistory, row: int, column: int) -> bool:
    kept = each.plan.kept_neurons
    return kept is None or column in kept[row]


def _told(each: RoundHistory, row: int, column: int, stays: bool) -> str:
    """What a round decided on the neuron at (row, column), and from which score."""
    if each.plan.kept_neurons is None:
        return "no neurons were to go."
    what = "stayed" if stays else "went"
    if each.scores_LI is None:
        return f"{what}; its scores are not on disk."
    scores = each.scores_LI[row]
    score, width = float(scores[column]), len(scores)
    lower = int((scores < score).sum())
    text = (
        f"{what}: score {score:.6g} by {each.plan.scorer}, {lower} of the layer's {width} neurons"
        f" scored lower"
    )
    line = history.cut(each, row)
    if line is not None:
        text += f"; the cut was at {line:.6g}, {each.plan.width} stayed"
        # --protect, or a tie at the cut
        if stays and score < line:
            text += ", and it stayed although below the cut (--protect)"
    moved = f" It was number {column} then." if column != int(each.neurons_LI[row, column]) else ""
    return f"{text}.{moved}"


def layer_text(rounds: Sequence[RoundHistory], layer: int) -> str:
    """A table of what each round took from a layer."""
    lines = [HEADER]
    for each in rounds:
        if layer not in each.layers:
            break
        row, plan = each.row(layer), each.plan
        # beside mixtures of experts, a layer's FFN may have another width, and keep it
        kept = None if row is None else plan.kept_neurons
        width = each.neurons_LI.shape[1] if row is not None else 0
        went = 0 if kept is None or row is None else width - len(kept[row])
        margins = ["", ""]
        if kept is not None and row is not None and plan.highest_removed and plan.lowest_kept:
            margins = [f"{plan.highest_removed[row]:.6g}", f"{plan.lowest_kept[row]:.6g}"]
        if layer in each.dropped:
            went = width
        told = str(width) if row is not None else "not pruned"
        lines.append([str(each.number), told, str(went), *margins, _layer(each, layer)])
    return markdown.table(lines)


def _layer(each: RoundHistory, layer: int) -> str:
    """What a round decided on the layer itself."""
    if layer in each.dropped:
        return _layer_went(each, layer).rstrip(".")
    if each.plan.layer_scores is None:
        return "not asked"
    row = each.layers.index(layer)
    return f"stayed, score {each.plan.layer_scores[row]:.6g}"


def _layer_went(each: RoundHistory, layer: int) -> str:
    scores, row = each.plan.layer_scores, each.layers.index(layer)
    if scores is None:
        return "the layer went."
    lower = sum(score < scores[row] for score in scores)
    return (
        f"the layer went, score {scores[row]:.6g} by {each.plan.scorer}; {lower} of {len(scores)}"
        " layers scored lower."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

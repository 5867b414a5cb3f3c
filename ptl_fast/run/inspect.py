"""Why a neuron went or stayed, from a run's folder.

    ptl-fast inspect runs/demo --layer 3 --neuron 17

Layers and neurons have the original model's numbers, whatever moved in between.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ptl_fast.base import markdown
from ptl_fast.run import history
from ptl_fast.run.history import RoundHistory

HEADER = ["round", "neurons before", "went", "highest that went", "lowest that stayed", "layer"]


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
        _check(rounds[0], chosen.layer, chosen.neuron)
        if chosen.neuron is None:
            print(layer_text(rounds, chosen.layer))
        else:
            print("\n".join(neuron_lines(rounds, chosen.layer, chosen.neuron)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
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
    parser.add_argument("--neuron", type=int, help="its number in the original's layer, from 0")
    return parser


def _check(first: RoundHistory, layer: int, neuron: int | None) -> None:
    """Raise ValueError for a layer or neuron that the original does not have."""
    num_layers, width = first.neurons_LI.shape
    if not 0 <= layer < num_layers:
        raise ValueError(f"--layer {layer}: the original has layers 0 to {num_layers - 1}")
    if neuron is not None and not 0 <= neuron < width:
        raise ValueError(f"--neuron {neuron}: the original's layers have neurons 0 to {width - 1}")


def neuron_lines(rounds: Sequence[RoundHistory], layer: int, neuron: int) -> list[str]:
    """A sentence for each round up to the one in which the neuron went, then what came of it."""
    lines, name = [], f"Neuron {neuron} of layer {layer}"
    for each in rounds:
        place = each.place(layer, neuron)
        assert place is not None, "the loop ends with the round in which it went"
        if layer in each.dropped:
            lines.append(f"Round {each.number}: {_layer_went(each, layer)}")
            return [*lines, f"{name} went with its layer in round {each.number}."]
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
        row, plan = each.layers.index(layer), each.plan
        width = each.neurons_LI.shape[1]
        went = 0 if plan.kept_neurons is None else width - len(plan.kept_neurons[row])
        margins = ["", ""]
        if plan.kept_neurons is not None and plan.highest_removed and plan.lowest_kept:
            margins = [f"{plan.highest_removed[row]:.6g}", f"{plan.lowest_kept[row]:.6g}"]
        if layer in each.dropped:
            went = width
        lines.append([str(each.number), str(width), str(went), *margins, _layer(each, layer)])
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

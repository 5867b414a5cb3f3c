"""What became of every neuron and layer of the original model, from a run's folder alone.

A round numbers neurons and layers as it found them. Here the plans of all rounds are followed, so
that everything has the original model's numbers.

Shape suffixes: L layers, I FFN width, both of the model before a round.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptl_fast.base.run_files import RunFiles
from ptl_fast.run.folder import read_plan

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.pruning.plan import PruningPlan


@dataclass(frozen=True)
class RoundHistory:
    """One round, in the original's numbers."""

    number: int
    plan: "PruningPlan"
    neurons_LI: "Tensor"
    """The original number of each neuron before the round."""
    layers: list[int]
    """The original number of each layer before the round."""
    scores_LI: "Tensor | None"
    """The scores that ranked the neurons; None in a round that ranked none, or if not on disk."""
    changes_L: "list[float] | None"
    """How far each layer turns the residual stream: 1 less the mean cosine of before and after."""

    @property
    def dropped(self) -> list[int]:
        """The original numbers of the layers that went."""
        return [self.layers[each] for each in self.plan.dropped_layers]

    def place(self, layer: int, neuron: int) -> tuple[int, int] | None:
        """Where an original neuron was before the round; None if it had gone."""
        if layer not in self.layers:
            return None
        row = self.layers.index(layer)
        found = (self.neurons_LI[row] == neuron).nonzero()
        return (row, int(found[0])) if len(found) else None


def read(folder: Path) -> list[RoundHistory]:
    """The finished rounds of a run, in order, up to one whose plan is damaged or lost: what came
    after it has no numbers of the original. All ranks must call this.

    Raises:
        ValueError: the folder holds no run, or experts were pruned.
    """
    import torch

    from ptl_fast.pruning import compact

    files = RunFiles(folder)
    dense = files.dense.read()
    if dense is None:
        raise ValueError(f"{folder} holds no run that has measured its original model")
    width, num_layers = dense["width"], dense["num_layers"]
    neurons_LI = torch.arange(width).expand(num_layers, width).contiguous()
    layers, rounds = list(range(num_layers)), []
    for number in range(1, files.num_finished_rounds() + 1):
        # a run that is done with a plan does not end because of it, and neither does its report
        if not files.round(number).plan.exists():
            break
        plan = read_plan(files.round(number))
        of_experts = plan.kept_neurons is not None and len(plan.kept_neurons) != len(layers)
        if of_experts or plan.kept_experts is not None:
            raise ValueError(f"{folder} pruned experts, whose neurons are not followed")
        scores_LI, changes_L = _scores(files, number)
        rounds.append(RoundHistory(number, plan, neurons_LI, list(layers), scores_LI, changes_L))
        neurons_LI = compact.follow(neurons_LI, plan)
        gone = set(plan.dropped_layers)
        layers = [each for place, each in enumerate(layers) if place not in gone]
    return rounds


def read_if_possible(folder: Path) -> list[RoundHistory]:
    """What ``read`` returns; [] where it raises: a report does without, and a run goes on."""
    try:
        return read(folder)
    except ValueError:
        return []


def _scores(files: RunFiles, number: int) -> "tuple[Tensor | None, list[float] | None]":
    """A round's neuron scores and the layers' changes, as far as they are on disk."""
    statistics = files.round(number).statistics
    if not statistics.exists():
        return None, None
    tensors = statistics.read()
    scores = tensors.get("scores")
    scores = scores.double() if scores is not None and scores.dim() == 2 else None
    change_L3, count = tensors.get("change_L3"), tensors.get("num_tokens")
    if change_L3 is None or count is None or not float(count):
        return scores, None
    return scores, (1 - change_L3[:, 2].double() / float(count)).tolist()


def cut(history: RoundHistory, row: int) -> float | None:
    """Between the highest score that went and the lowest that stayed, in a row of the plan."""
    went, stayed = history.plan.highest_removed, history.plan.lowest_kept
    if history.plan.kept_neurons is None or went is None or stayed is None:
        return None
    return (went[row] + stayed[row]) / 2

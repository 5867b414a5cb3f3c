"""What became of every neuron and layer of the original model, from a run's folder alone.

A round numbers neurons and layers as it found them. Here the plans of all rounds are followed, so
that everything has the original model's numbers.

In a mixture of experts each expert has a row of its own, and so has each FFN beside them.

Shape suffixes: L layers (with experts: FFNs), I FFN width, both of the model before a round.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ptl_fast.base.run_files import RunFiles
from ptl_fast.run.expert_choice import OWNERS
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
    rows: list[tuple[int, int]] | None = None
    """With experts, the original numbers (layer, FFN of the layer) of each row above: the experts
    first, then what has their width beside them. None: a row is a layer.
    """
    experts: dict[int, list[int]] = field(default_factory=dict)
    """By the original number of each layer with experts, the original numbers of its experts before
    the round.
    """

    @property
    def ranked(self) -> "Tensor | None":
        """The scores that the round ranked by: of neurons, (L, I), or in a round of experts theirs,
        (layers with experts, experts of each).
        """
        import torch

        if self.plan.expert_scores is None:
            return self.scores_LI
        return torch.tensor(self.plan.expert_scores, dtype=torch.float64)

    @property
    def dropped(self) -> list[int]:
        """The original numbers of the layers that went."""
        return [self.layers[each] for each in self.plan.dropped_layers]

    def kept_experts(self, layer: int) -> list[int]:
        """The original numbers of a layer's experts that stay in the round."""
        before = self.experts[layer]
        if self.plan.kept_experts is None:
            return before
        return [before[each] for each in self.plan.kept_experts[self.mixture(layer)]]

    def mixture(self, layer: int) -> int:
        """Which of the plan's rows of experts is a layer's."""
        return list(self.experts).index(layer)

    def row(self, layer: int, expert: int = 0) -> int | None:
        """The row of a layer's FFN, or of one of its experts; None if it had gone."""
        rows = [(each, expert) for each in self.layers] if self.rows is None else self.rows
        return rows.index((layer, expert)) if (layer, expert) in rows else None

    def place(self, layer: int, neuron: int, expert: int = 0) -> tuple[int, int] | None:
        """Where an original neuron was before the round; None if it had gone."""
        row = self.row(layer, expert)
        if row is None:
            return None
        found = (self.neurons_LI[row] == neuron).nonzero()
        return (row, int(found[0])) if len(found) else None


def read(folder: Path) -> list[RoundHistory]:
    """The finished rounds of a run, in order, up to one whose plan is damaged or lost: what came
    after it has no numbers of the original. All ranks must call this.

    Raises:
        ValueError: the folder holds no run, or its experts' rows are not known.
    """
    import torch

    from ptl_fast.pruning import compact

    files = RunFiles(folder)
    dense = files.dense.read()
    if dense is None:
        raise ValueError(f"{folder} holds no run that has measured its original model")
    width, num_layers = dense["width"], dense["num_layers"]
    neurons_LI = torch.arange(width).expand(num_layers, width).contiguous()
    layers, rounds = list(range(num_layers)), list[RoundHistory]()
    rows: list[tuple[int, int]] | None = None
    experts: dict[int, list[int]] = {}
    for number in range(1, files.num_finished_rounds() + 1):
        # a run that is done with a plan does not end because of it, and neither does its report
        if not files.round(number).plan.exists():
            break
        plan = read_plan(files.round(number))
        scores_LI, changes_L, layer_U = _scores(files, number)
        if rows is None and layer_U is not None:
            rows, experts = _rows(layer_U, layers, dense["num_experts"])
            neurons_LI = torch.arange(width).expand(len(rows), width).contiguous()
        own = plan.kept_neurons if plan.kept_neurons is not None else neurons_LI
        if len(own) != len(neurons_LI) or len(plan.kept_experts or experts) != len(experts):
            raise ValueError(f"{folder} pruned experts, and does not say of which layers they are")
        found = scores_LI if plan.kept_experts is None else None
        rounds.append(
            RoundHistory(number, plan, neurons_LI, list(layers), found, changes_L, rows, experts)
        )
        gone = set(plan.dropped_layers)
        neurons_LI = compact.follow(neurons_LI, replace(plan, dropped_layers=[]))
        kept = rounds[-1].kept_experts
        left = {layer: kept(layer) for layer in experts}
        lost = {(layer, each) for layer in experts for each in experts[layer]} - {
            (layer, each) for layer in left for each in left[layer]
        }
        owners = rows or [(layer, 0) for layer in layers]
        dropped = {layers[each] for each in gone}
        places = [
            place
            for place, owner in enumerate(owners)
            if owner not in lost and owner[0] not in dropped
        ]
        neurons_LI = neurons_LI[places]
        rows = None if rows is None else [owners[place] for place in places]
        experts = {layer: left[layer] for layer in left if layer not in dropped}
        layers = [each for each in layers if each not in dropped]
    return rounds


def _rows(
    layer_U: "Tensor", layers: list[int], num_experts: int
) -> tuple[list[tuple[int, int]], dict[int, list[int]]]:
    """The original numbers (layer, FFN) of a mixture's rows, and each layer's experts.

    Args:
        layer_U: the layer of each row, as they are numbered now.
        layers: their original numbers.
    """
    counts = [0] * len(layers)
    rows = []
    for layer in layer_U.tolist():
        rows.append((layers[layer], counts[layer]))
        counts[layer] += 1
    # layers without experts may have an FFN of their width
    mixtures = [layers[place] for place, count in enumerate(counts) if count >= num_experts]
    return rows, {layer: list(range(num_experts)) for layer in mixtures}


def read_if_possible(folder: Path) -> list[RoundHistory]:
    """What ``read`` returns; [] where it raises: a report does without, and a run goes on."""
    try:
        return read(folder)
    except ValueError:
        return []


def _scores(
    files: RunFiles, number: int
) -> "tuple[Tensor | None, list[float] | None, Tensor | None]":
    """A round's scores, the layers' changes, and of which layers a mixture's FFNs are, as far as
    they are on disk.
    """
    statistics = files.round(number).statistics
    if not statistics.exists():
        return None, None, None
    tensors = statistics.read()
    scores = tensors.get("scores")
    scores = scores.double() if scores is not None and scores.dim() == 2 else None
    change_L3, count = tensors.get("change_L3"), tensors.get("num_tokens")
    if change_L3 is None or count is None or not float(count):
        return scores, None, tensors.get(OWNERS)
    changes = (1 - change_L3[:, 2].double() / float(count)).tolist()
    return scores, changes, tensors.get(OWNERS)


def cut(history: RoundHistory, row: int) -> float | None:
    """Between the highest score that went and the lowest that stayed, in a row of the plan."""
    went, stayed = history.plan.highest_removed, history.plan.lowest_kept
    of_rows = history.plan.kept_neurons is not None or history.plan.kept_experts is not None
    if not of_rows or went is None or stayed is None:
        return None
    return (went[row] + stayed[row]) / 2

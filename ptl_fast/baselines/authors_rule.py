"""Neuron detection as in the published code of arXiv 2602.04919: a baseline, not our method.

The paper's equations score each neuron over all tokens of the corpus; its code reads one position
of a few samples, and compares signed values. This file reproduces the code, including its cost
(batch size 1, Python sets, a device-to-host copy per view), as benchmarks time it.

Shape suffixes: L layers, I neurons (FFN width).
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptl_fast.base.progress import progress
from ptl_fast.model.families import Family, feed_forwards
from ptl_fast.scoring.evidence import Evidence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_REASONING, NUM_GENERAL = 10, 1000
# Their top_n as a fraction of the FFN width in their first round (Llama3-8B).
TOP_SHARE = 12000 / 14336


def detect(
    model: "PreTrainedModel",
    family: Family,
    reasoning: Sequence[Sequence[int]],
    general: Sequence[Sequence[int]],
) -> Tensor:
    """Return which neurons the rule calls redundant, (num_layers, width) bool on the CPU.

    A view is one of three activations of a neuron (see ``common_extremes``). In one view a neuron
    is redundant if it is among the least active in every reasoning sample, and not among the most
    active in every general (English) sample. A neuron redundant in any view is redundant.

    Cost: one forward pass per document, 1010 at most.

    Args:
        reasoning: token ids of documents; the first 10 are used.
        general: token ids of documents; the first 1000 are used.
    """
    least = common_extremes(
        model, family, reasoning[:NUM_REASONING], largest=False, description="calibrate"
    )
    most = common_extremes(
        model, family, general[:NUM_GENERAL], largest=True, description="protect"
    )
    # PTL keeps the same width in all layers, so the result is a matrix
    widths = [ffn.width for ffn in feed_forwards(model, family).values()]
    selected_LI = torch.zeros(len(widths), widths[0], dtype=torch.bool)
    for selected_I, least_of_views, most_of_views in zip(selected_LI, least, most, strict=True):
        redundant = set().union(
            *(low - high for low, high in zip(least_of_views, most_of_views, strict=True))
        )
        selected_I[sorted(redundant)] = True
    return selected_LI


def score(evidence: Evidence) -> Tensor:
    """Scores that remove neurons in the authors' order, (num_layers, width) float64; lowest first.

    score[l, i] = i - width (below zero) for redundant neurons, and i for the others. So redundant
    ones go first, by index; if a round removes more, the lowest indices of the rest follow, as in
    the authors' code.
    """
    assert evidence.samples is not None
    samples = evidence.samples
    selected_LI = detect(evidence.model, evidence.family, samples.reasoning, samples.general)
    width = selected_LI.shape[1]
    return torch.arange(width, dtype=torch.float64) - width * selected_LI.double()


@torch.inference_mode()
def common_extremes(
    model: "PreTrainedModel",
    family: Family,
    documents: Sequence[Sequence[int]],
    largest: bool,
    description: str = "",
) -> list[list[set[int]]]:
    """Return, per layer and view, the neurons among the TOP_SHARE most or least active everywhere.

    Everywhere means in every document. The views are gate_proj's output before the activation
    function, up_proj's output, and down_proj's input, at the last position of a document whose last
    token is fed twice. Values are compared with their sign, not by magnitude. All as in the
    authors' code.

    Args:
        documents: token ids.
        largest: whether to find the most active neurons; the least active if False.
        description: label of the progress bar; no bar if empty.
    """
    views: list[list[Tensor]] = []

    def record_inputs(
        layer: int, count: int, module: nn.Module, args: tuple, output: Tensor
    ) -> None:
        views[layer] += [view.flatten(0, -2)[-1] for view in output.chunk(count, dim=-1)]

    def record_activation(layer: int, module: nn.Module, args: tuple) -> None:
        views[layer].append(args[0].flatten(0, -2)[-1])

    ffns, handles = list(feed_forwards(model, family).values()), []
    for index, ffn in enumerate(ffns):
        count = 2 if ffn.fused else 1  # one projection may hold gate and up
        handles += [
            linear.register_forward_hook(partial(record_inputs, index, count))
            for linear in ffn.inputs
        ]
        handles.append(ffn.down.register_forward_pre_hook(partial(record_activation, index)))
    common: list[list[set[int]]] = []
    try:
        for document in progress(documents, description, hidden=not description):
            # in place: the hooks have a reference to this list
            views[:] = [[] for _ in ffns]
            model(torch.tensor([[*document, document[-1]]], device=model.device), use_cache=False)
            found = [[_extremes(view, largest) for view in layer] for layer in views]
            # intersected document by document, so that one document's sets are held at a time
            common = (
                [_intersections(*pair) for pair in zip(common, found, strict=True)]
                if common
                else found
            )
    finally:
        for handle in handles:
            handle.remove()
    return common


def _extremes(view_I: Tensor, largest: bool) -> set[int]:
    """Indices of the TOP_SHARE largest or smallest values."""
    return set(view_I.topk(round(TOP_SHARE * view_I.numel()), largest=largest).indices.tolist())


def _intersections(views: list[set[int]], others: list[set[int]]) -> list[set[int]]:
    return [one & other for one, other in zip(views, others, strict=True)]

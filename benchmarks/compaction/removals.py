"""Ways of removing neurons from every FFN of a model: ours, and those that it is compared with.

Each takes a model and the neurons that stay in each layer, and returns the smaller model, which may
be the same object. Shape suffixes: K neurons that stay.
"""

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.pruning import compact
from ptl_fast.pruning.plan import PruningPlan
from ptl_kernels import Ffn

KeptNeurons = list[list[int]]
"""Indices of the neurons that stay, by layer; as many in each."""
Removal = Callable[[PreTrainedModel, KeptNeurons], PreTrainedModel]


def ours(model: PreTrainedModel, kept: KeptNeurons) -> PreTrainedModel:
    """In place: kept neurons of the tail fill the holes of the head (ptl_kernels.hole_filling)."""
    # as a run makes it, but with random neurons
    plan = PruningPlan(
        round=1,
        kind="neurons",
        scorer="random",
        width=len(kept[0]),
        num_layers=len(kept),
        kept_neurons=kept,
    )
    compact.compact_(model, find_family(model), plan)
    return model


@torch.no_grad()
def by_indexing(model: PreTrainedModel, kept: KeptNeurons, select: bool) -> PreTrainedModel:
    """Three new matrices a layer, by x[idx] or by index_select, which is the faster one on a CPU in
    float32.
    """
    ffns = feed_forwards_of(model)
    for ffn, order_K in zip(ffns, compact.kept_indices(kept).to(model.device), strict=True):
        for linear in ffn.inputs:
            weight = linear.weight
            linear.weight = nn.Parameter(
                weight.index_select(0, order_K) if select else weight[order_K]
            )
        weight = ffn.down.weight
        ffn.down.weight = nn.Parameter(
            weight.index_select(1, order_K) if select else weight[:, order_K]
        )
    return with_new_width(model, ffns, kept)


@torch.enable_grad()  # torch-pruning finds dependencies by walking the graph of autograd
def by_torch_pruning(model: PreTrainedModel, kept: KeptNeurons, graph: bool) -> PreTrainedModel:
    """torch-pruning's functions, by themselves or found by its dependency graph."""
    import torch_pruning

    width = model.config.intermediate_size
    if graph:
        # an example input is run once, to see which layers follow which
        example = {
            "input_ids": torch.ones(1, 8, dtype=torch.int64, device=model.device),
            "use_cache": False,
        }
        dependencies = torch_pruning.DependencyGraph().build_dependency(
            model, example_inputs=example
        )
    ffns = feed_forwards_of(model)
    for ffn, indices in zip(ffns, kept, strict=True):
        removed = sorted(set(range(width)) - set(indices))
        if graph:
            # the group of a gate holds its up and down projections too
            dependencies.get_pruning_group(
                ffn.inputs[0], torch_pruning.prune_linear_out_channels, idxs=removed
            ).prune()
            continue
        for linear in ffn.inputs:
            torch_pruning.prune_linear_out_channels(linear, removed)
        torch_pruning.prune_linear_in_channels(ffn.down, removed)
    return with_new_width(model, ffns, kept)


@torch.no_grad()
def by_scanning_lists(model: PreTrainedModel, kept: KeptNeurons) -> PreTrainedModel:
    """For each matrix, every neuron is looked for in the list of those that go, and a new layer
    takes the rest.
    """
    width = model.config.intermediate_size
    ffns = feed_forwards_of(model)
    for ffn, indices in zip(ffns, kept, strict=True):
        removed = sorted(set(range(width)) - set(indices))
        for linear, dim in [*((linear, 0) for linear in ffn.inputs), (ffn.down, 1)]:
            # a list, not a set: this quadratic scan is what takes the authors' way its time
            stays = [index for index in range(width) if index not in removed]
            weight = linear.weight.index_select(dim, torch.tensor(stays, device=model.device))
            fresh = nn.Linear(
                weight.shape[1],
                weight.shape[0],
                bias=False,
                device=weight.device,
                dtype=weight.dtype,
            )
            fresh.weight.copy_(weight)
            linear.weight = fresh.weight
    return with_new_width(model, ffns, kept)


def with_files(model: PreTrainedModel, kept: KeptNeurons) -> PreTrainedModel:
    """by_scanning_lists between three times saving and loading the model."""
    with tempfile.TemporaryDirectory() as folder:
        for round_trip in range(3):
            if round_trip == 1:
                model = by_scanning_lists(model, kept)
            model.save_pretrained(folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=model.dtype, trust_remote_code=False
            )
            model = loaded.to(model.device)
    return model.eval()


def feed_forwards_of(model: PreTrainedModel) -> list[Ffn]:
    """The FFNs, in the layers' order."""
    return list(feed_forwards(model, find_family(model)).values())


def with_new_width(model: PreTrainedModel, ffns: list[Ffn], kept: KeptNeurons) -> PreTrainedModel:
    """The model with the sizes that its layers and its config state set to its matrices'."""
    for ffn in ffns:
        for linear in ffn.inputs:
            linear.out_features = len(kept[0])
        ffn.down.in_features = len(kept[0])
    model.config.intermediate_size = len(kept[0])
    return model


WITH_FILES = "authors' way, with files"
REMOVALS: dict[str, Removal] = {
    "ours": ours,
    "three x[idx]": functools.partial(by_indexing, select=False),
    "three index_select": functools.partial(by_indexing, select=True),
    "torch-pruning, functions": functools.partial(by_torch_pruning, graph=False),
    "torch-pruning, graph": functools.partial(by_torch_pruning, graph=True),
    "authors' way": by_scanning_lists,
    WITH_FILES: with_files,
}


def why_not_measured(name: str, files: bool) -> str | None:
    """Why a way cannot be measured; None if it can."""
    if name.startswith("torch-pruning") and importlib.util.find_spec("torch_pruning") is None:
        return "torch-pruning is not installed"
    return "left out by --no-files" if name == WITH_FILES and not files else None

"""PruningPlan -> the smaller model and its config, in place. What comes out is an ordinary
transformers model.
"""

from array import array
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ptl_fast.model.families import Family, decoder_layers, feed_forwards, resize_config
from ptl_kernels import GatedFfn, compact_ffn_, hole_filling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.pruning.plan import PruningPlan

MOMENTS = ("exp_avg", "exp_avg_sq")


@torch.no_grad()
def compact_(
    model: "PreTrainedModel",
    family: Family,
    plan: "PruningPlan",
    optimizer_state: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Remove the plan's neurons or layers from the model physically, and repair its config.

    The result equals, to rounding, the original with the removed neurons' activations set to zero.
    Peak extra memory: one matrix. ``optimizer_state``, Adam's by parameter name, follows in place: those of removed
    neurons and layers go, the others move as the weights do."""
    state_of: dict[Tensor, dict[str, Tensor]] = {}
    if optimizer_state:
        state_of = {
            parameter: optimizer_state.pop(name)
            for name, parameter in model.named_parameters()
            if name in optimizer_state
        }
    if plan.kept_neurons is not None:
        ffns, kept_LK = feed_forwards(model, family), kept_indices(plan.kept_neurons)
        if state_of:
            _compact_moments_(ffns, kept_LK, state_of)
        _compact_neurons_(ffns, kept_LK)
    layers = decoder_layers(model, family)
    kept_layers = [index for index in range(len(layers)) if index not in set(plan.dropped_layers)]
    for index in reversed(plan.dropped_layers):
        del layers[index]
    if plan.dropped_layers:
        _number_layers(layers)
    if optimizer_state is not None and state_of:
        optimizer_state.update(
            {
                name: state_of[parameter]
                for name, parameter in model.named_parameters()
                if parameter in state_of
            }
        )
    for config in _configs(model, family):
        if config.num_hidden_layers != len(kept_layers) or config.intermediate_size != plan.width:
            resize_config(config, plan.width, kept_layers)


def _configs(model: "PreTrainedModel", family: Family) -> list[Any]:
    """The configs, each once, of the model and of all modules outside its layers, whose modules
    share theirs with the model.
    """
    layers, configs = decoder_layers(model, family), dict[int, Any]()
    modules: list[nn.Module] = [model]
    for module in modules:
        modules += [child for child in module.children() if child is not layers]
        if (
            config := vars(module).get("config")
        ) is not None:  # hasattr would search the module's parameters too
            configs[id(config)] = config
    return list(configs.values())


def follow(scores: Tensor, plan: "PruningPlan") -> Tensor:
    """Scores of what ``plan`` leaves, in the order in which it lies afterwards.

    Args:
        scores: (num_layers, width) of neurons, or (num_layers,) of layers.
    """
    if plan.kept_neurons is not None and scores.dim() == 2:
        scores = scores.gather(
            1, hole_filling(kept_indices(plan.kept_neurons), scores.shape[1]).order_LK
        )
    return scores[[layer for layer in range(len(scores)) if layer not in set(plan.dropped_layers)]]


def kept_indices(kept_neurons: list[list[int]]) -> Tensor:
    """(num_layers, num_kept) int64; by way of an array, which reads lists several times faster than
    torch.
    """
    flat = array("q")
    for kept_K in kept_neurons:
        flat.fromlist(kept_K)
    return torch.frombuffer(flat, dtype=torch.int64).view(len(kept_neurons), -1)


def _compact_moments_(
    ffns: dict[str, GatedFfn], kept_LK: Tensor, state_of: dict[Tensor, dict[str, Tensor]]
) -> None:
    for key in MOMENTS:
        layers = []
        for ffn in ffns.values():
            inputs = [state_of[parameter][key] for parameter in _input_tensors(ffn)]
            layers.append((inputs, state_of[ffn.down.weight][key]))
        compact_ffn_(layers, kept_LK)


def _compact_neurons_(feed_forwards: dict[str, GatedFfn], kept_LK: Tensor) -> None:
    """Kept neurons of an FFN's tail move into the holes of its head: ``ptl_kernels.hole_filling``
    gives the order.
    """
    compact_ffn_(
        [(_input_tensors(ffn), ffn.down.weight) for ffn in feed_forwards.values()], kept_LK
    )
    for ffn in feed_forwards.values():
        for linear in ffn.inputs:
            linear.out_features = linear.weight.shape[0]
        ffn.down.in_features = kept_LK.shape[1]
        if hasattr(ffn.module, "intermediate_size"):
            ffn.module.intermediate_size = ffn.width  # type: ignore[assignment]


def _input_tensors(ffn: GatedFfn) -> list[Tensor]:
    return [linear.weight for linear in ffn.inputs] + [
        linear.bias for linear in ffn.inputs if linear.bias is not None
    ]


def _number_layers(layers: nn.ModuleList) -> None:
    """Give each layer's modules their new index, which selects their part of the KV cache."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]

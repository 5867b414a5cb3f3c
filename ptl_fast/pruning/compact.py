"""Apply a PruningPlan to a model and its config in place; the result is plain transformers."""

from array import array
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ptl_fast.model.families import Family, decoder_layers, feed_forwards, resize_config
from ptl_fast.model.layers import number_layers
from ptl_fast.model.widths import ffn_width, num_experts
from ptl_fast.pruning.experts import compact_experts_, record_sizes
from ptl_fast.pruning.whole_experts import drop_experts_
from ptl_kernels import Ffn, compact_ffn_, hole_filling, matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.pruning.plan import PruningPlan

MOMENTS = ("exp_avg", "exp_avg_sq")  # the tensors of Adam's state, in torch's names


@torch.no_grad()
def compact_(
    model: "PreTrainedModel",
    family: Family,
    plan: "PruningPlan",
    optimizer_state: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Remove the plan's neurons, layers or experts from the weights, and update the model's config.

    Up to rounding, the result computes what the model would with the removed neurons' activations
    set to zero, with the removed layers skipped, or with no token routed to the removed experts.
    Kept neurons may change their order. Peak extra memory: one weight matrix.

    Args:
        optimizer_state: Adam's state by parameter name. Changed in place like the parameters:
            entries of removed neurons and layers go, and keys follow the layers' new numbers.
    """
    # by parameter, as the names of layers change
    state_of: dict[Tensor, dict[str, Tensor]] = {}
    if optimizer_state:
        state_of = {
            parameter: optimizer_state.pop(name)
            for name, parameter in model.named_parameters()
            if name in optimizer_state
        }
    if plan.kept_neurons is not None:
        kept_LK = kept_indices(plan.kept_neurons)
        if family.mixture is not None:
            compact_experts_(model, family, kept_LK, state_of)
        else:
            ffns = feed_forwards(model, family)
            if state_of:
                _compact_moments_(ffns, kept_LK, state_of)
            compact_neurons_(ffns, kept_LK)
    if plan.kept_experts is not None:
        drop_experts_(model, family, plan.kept_experts, state_of)
    layers = decoder_layers(model, family)
    kept_layers = [index for index in range(len(layers)) if index not in set(plan.dropped_layers)]
    # from the end, so that the indices of those still to be deleted stay valid
    for index in reversed(plan.dropped_layers):
        del layers[index]
    if plan.dropped_layers:
        number_layers(layers, kept_layers)
    if optimizer_state is not None and state_of:
        optimizer_state.update(
            {
                name: state_of[parameter]
                for name, parameter in model.named_parameters()
                if parameter in state_of
            }
        )
    for config in _configs(model, family):
        if _differs(config, plan, len(kept_layers)):
            resize_config(config, plan.width, kept_layers, plan.num_experts)
    if plan.kept_experts is not None or (family.mixture is not None and plan.kept_neurons):
        record_sizes(model)


def _differs(config: Any, plan: "PruningPlan", num_layers: int) -> bool:
    """Whether a config says other sizes than the plan."""
    if plan.num_experts not in (None, num_experts(config)):
        return True
    return config.num_hidden_layers != num_layers or ffn_width(config) != plan.width


def _configs(model: "PreTrainedModel", family: Family) -> list[Any]:
    """The distinct configs of the model and its modules, such as a multimodal model's text config.

    Modules inside decoder layers are not searched: they share their config with the model.
    """
    layers, configs = decoder_layers(model, family), dict[int, Any]()
    modules: list[nn.Module] = [model]
    # the list grows while it is iterated: a breadth-first search
    for module in modules:
        modules += [child for child in module.children() if child is not layers]
        # vars: getattr would also search the module's parameters, buffers and submodules
        if (config := vars(module).get("config")) is not None:
            configs[id(config)] = config
    return list(configs.values())


def follow(scores: Tensor, plan: "PruningPlan") -> Tensor:
    """Return the scores of what ``plan`` leaves, in the order of the compacted model.

    Args:
        scores: neuron scores, (num_layers, width), or layer scores, (num_layers,).
    """
    if plan.kept_neurons is not None and scores.dim() == 2:
        scores = scores.gather(
            1, hole_filling(kept_indices(plan.kept_neurons), scores.shape[1]).order_LK
        )
    return scores[[layer for layer in range(len(scores)) if layer not in set(plan.dropped_layers)]]


def kept_indices(kept_neurons: list[list[int]]) -> Tensor:
    """A plan's ``kept_neurons`` as a tensor, (num_layers, num_kept) int64 on the CPU."""
    # through array, which reads lists several times faster than torch does
    flat = array("q")
    for kept_K in kept_neurons:
        flat.fromlist(kept_K)
    return torch.frombuffer(flat, dtype=torch.int64).view(len(kept_neurons), -1)


def _compact_moments_(
    ffns: dict[str, Ffn], kept_LK: Tensor, state_of: dict[Tensor, dict[str, Tensor]]
) -> None:
    """Compact the FFNs' optimizer state in place, in the same way as the weights."""
    for key in MOMENTS:
        layers = []
        for ffn in ffns.values():
            rows, columns = _tensors(ffn)
            inputs = [state_of[parameter][key] for parameter in rows]
            layers.append((inputs, state_of[columns][key]))
        compact_ffn_(layers, kept_LK)


def compact_neurons_(feed_forwards: dict[str, Ffn], kept_LK: Tensor) -> None:
    """Compact the FFNs' weights in place, and set the layers' recorded sizes.

    Only kept neurons beyond the new width move, into the places of removed ones, in the order of
    ``ptl_kernels.hole_filling``: far less is copied than by moving every kept neuron.
    """
    compact_ffn_([_tensors(ffn) for ffn in feed_forwards.values()], kept_LK)
    for ffn in feed_forwards.values():
        for linear in (*ffn.inputs, ffn.down):
            _record_size(linear)
        # many transformers MLPs keep a copy of the config's width
        if hasattr(ffn.module, "intermediate_size"):
            ffn.module.intermediate_size = ffn.width  # type: ignore[assignment]


def _tensors(ffn: Ffn) -> tuple[list[Tensor], Tensor]:
    """(the tensors with one row per neuron, weights before biases; the one with a column a neuron).

    The latter is the down projection's weight, but for layers that hold the transpose (Conv1D):
    then the two weights change places.
    """
    weights, columns = [linear.weight for linear in ffn.inputs], ffn.down.weight
    if matrix(ffn.down) is not columns:
        weights, (columns,) = [columns], weights
    return weights + [linear.bias for linear in ffn.inputs if linear.bias is not None], columns


def _record_size(linear: Any) -> None:
    """Set the sizes that a linear layer records to those of its weight."""
    outputs, inputs = matrix(linear).shape
    if hasattr(linear, "nx"):
        linear.nf, linear.nx = outputs, inputs
    else:
        linear.out_features, linear.in_features = outputs, inputs

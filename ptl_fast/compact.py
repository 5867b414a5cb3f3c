"""PruningPlan -> the smaller model and its config, in place. What comes out is an ordinary transformers model."""

from typing import TYPE_CHECKING, Any

import torch
from ptl_kernels.reference import compact_columns, compact_rows
from torch import Tensor, nn

from ptl_fast.families import Family, FeedForward, decoder_layers, feed_forwards, resize_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.plan import PruningPlan


@torch.no_grad()
def compact_(model: "PreTrainedModel", family: Family, plan: "PruningPlan") -> None:
    """Remove the plan's neurons or layers from the model physically, and repair its config.

    The result equals, to rounding, the original with the removed neurons' activations set to zero. Peak extra memory: one matrix.
    """
    if plan.kept_neurons is not None:
        for feed_forward, kept in zip(feed_forwards(model, family), plan.kept_neurons, strict=True):
            _compact_feed_forward(feed_forward, torch.tensor(kept, device=feed_forward.down.weight.device))
    layers = decoder_layers(model, family)
    kept_layers = [index for index in range(len(layers)) if index not in set(plan.dropped_layers)]
    for index in reversed(plan.dropped_layers):
        del layers[index]
    _number_layers(layers)
    configs: dict[int, Any] = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in configs.values():
        if config.num_hidden_layers != len(kept_layers) or config.intermediate_size != plan.width:
            resize_config(config, plan.width, kept_layers)


def _compact_feed_forward(feed_forward: FeedForward, kept: Tensor) -> None:
    width = feed_forward.width
    rows = torch.cat([kept, kept + width]) if feed_forward.fused else kept
    for linear in feed_forward.inputs:
        _replace(linear, "weight", compact_rows(linear.weight, rows))
        if linear.bias is not None:
            _replace(linear, "bias", compact_rows(linear.bias, rows))
        linear.out_features = len(rows)
    _replace(feed_forward.down, "weight", compact_columns(feed_forward.down.weight, kept))
    feed_forward.down.in_features = len(kept)
    if hasattr(feed_forward.module, "intermediate_size"):
        feed_forward.module.intermediate_size = len(kept)  # type: ignore[assignment]


def _replace(linear: nn.Linear, name: str, value: Tensor) -> None:
    setattr(linear, name, nn.Parameter(value, requires_grad=getattr(linear, name).requires_grad))


def _number_layers(layers: nn.ModuleList) -> None:
    """Give each layer's modules their new index, which selects their part of the KV cache."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]

"""Remove neurons from the experts of a model, and from the FFNs that have their width.

A stack of experts gets new tensors of the small size, one at a time; the parameter objects stay.

Shape suffixes: U FFNs (all experts of all layers, and what is beside them), K kept neurons.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ptl_fast.model.experts import SharedView, layout
from ptl_fast.model.families import Family, feed_forwards
from ptl_fast.model.layers import NUMBERS, on_meta
from ptl_kernels import hole_filling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shrink = Callable[[Tensor], Tensor]
"""A tensor -> its part that stays; for a parameter as for its optimizer's moments."""


def compact_experts_(
    model: "PreTrainedModel",
    family: Family,
    kept_UK: Tensor,
    state_of: dict[Tensor, dict[str, Tensor]],
) -> None:
    """Remove all neurons but the kept ones, in place, from weights and optimizer state.

    Neurons lie afterwards in the order of ``ptl_kernels.hole_filling``, as in any other FFN.

    Args:
        kept_UK: indices of the neurons that stay in each of ``feed_forwards``.
        state_of: Adam's state by parameter.
    """
    ffns = feed_forwards(model, family)
    width = next(iter(ffns.values())).width
    order_UK = hole_filling(kept_UK, width).order_LK
    # FFNs whose weights are one module's
    together: dict[nn.Module, list[int]] = {}
    for index, ffn in enumerate(ffns.values()):
        together.setdefault(ffn.module, []).append(index)
    listed = list(ffns.values())
    for module, indices in together.items():
        if layout(module) is not None:
            cuts = _of_stack(module, order_UK[indices], width)
        else:
            own = listed[indices[0]]
            first, *_ = own.inputs
            shared = isinstance(first, SharedView)
            parts: list[Any] = [*own.inputs, own.down]
            linears = [each.holder[0] if shared else each for each in parts]
            cuts = _of_linears(linears, order_UK[indices], width)
        for parameter, shrink in cuts:
            become_(parameter, shrink, state_of)


def become_(parameter: Tensor, shrink: Shrink, state_of: dict[Tensor, dict[str, Tensor]]) -> None:
    """Give a parameter, and its optimizer's moments, their smaller content."""
    shape = parameter.shape
    for key, moment in state_of.get(parameter, {}).items():
        if moment.shape == shape:
            state_of[parameter][key] = shrink(moment)
    parameter.grad = None
    parameter.data = shrink(parameter.data)


def _of_stack(stack: nn.Module, order_EK: Tensor, width: int) -> Iterator[tuple[Tensor, Shrink]]:
    """Each parameter of a stack, and what stays of it."""
    form = layout(stack)
    assert form is not None
    inputs_EJ = torch.stack([form.places(order_K, width) for order_K in order_EK])
    rows, columns = (2, 1) if form.transposed else (1, 2)
    cuts = {
        form.inputs: (inputs_EJ, rows),
        f"{form.inputs}_bias": (inputs_EJ, 1),
        "down_proj": (order_EK, columns),
    }
    for name, (places_EJ, dim) in cuts.items():
        if (parameter := getattr(stack, name, None)) is not None:
            yield parameter, _each_expert(places_EJ, dim)


def _each_expert(places_EJ: Tensor, dim: int) -> Shrink:
    def shrink(stacked: Tensor) -> Tensor:
        places = places_EJ.to(stacked.device)
        cut = [own.index_select(dim - 1, place) for own, place in zip(stacked, places, strict=True)]
        return torch.stack(cut)

    return shrink


def _of_linears(
    linears: list[Any], order_PK: Tensor, width: int
) -> Iterator[tuple[Tensor, Shrink]]:
    """Each parameter of an FFN of one or several (P) times an expert's width."""
    *inputs, down = linears
    parts = len(order_PK)
    columns_J = torch.cat([order_K + part * width for part, order_K in enumerate(order_PK)])
    for linear in inputs:
        # one weight can hold gate's rows above up's
        times = len(linear.weight) // (parts * width)
        rows = torch.cat([columns_J + each * parts * width for each in range(times)])
        yield linear.weight, selected(rows, 0)
        if linear.bias is not None:
            yield linear.bias, selected(rows, 0)
    yield down.weight, selected(columns_J, 1)


def selected(places_J: Tensor, dim: int) -> Shrink:
    """The shrinking that takes these places of a dimension."""
    return lambda tensor: tensor.index_select(dim, places_J.to(tensor.device))


def record_sizes(model: "PreTrainedModel") -> None:
    """Set the sizes that modules record to those that a model of the config has."""
    own = dict(model.named_modules())
    for name, built in on_meta(model.config).named_modules():
        for attribute, value in vars(built).items():
            kept = vars(own[name]).get(attribute)
            # not the layers' numbers, which compaction keeps itself
            if type(value) is int and type(kept) is int and attribute not in NUMBERS:
                setattr(own[name], attribute, value)

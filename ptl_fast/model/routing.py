"""Find what a layer has one of for each expert, by building the model with more experts.

The model of the same config with twice as many experts is built on torch's meta device. What has
another shape there follows the number of experts: the experts themselves, their biases, the
router's rows, and its biases. Without an expert's part of each, no token can go to it.
"""

import copy
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import nn

from ptl_fast.base.console import first_line
from ptl_fast.model.experts import stacks
from ptl_fast.model.mixtures import changes, shapes
from ptl_fast.model.widths import num_experts, set_num_experts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Routed:
    """A decoder layer's mixture of experts."""

    stack: str
    """Path of the module that holds its experts."""
    tensors: "Mapping[str, int]"
    """{parameter or buffer: its dimension over experts}, the experts' own among them."""

    @property
    def router(self) -> dict[str, int]:
        """Those that are no experts' own: the router's weight and biases."""
        own = f"{self.stack}."
        return {name: dim for name, dim in self.tensors.items() if not name.startswith(own)}


def find_routed(model: "PreTrainedModel", layers: str) -> list[Routed]:
    """The mixtures of a model, in the layers' order; a layer has one or none.

    Args:
        model: may be on the meta device.
        layers: path of its list of decoder layers.

    Raises:
        ValueError: whole experts cannot be removed; says why.
    """
    config: Any = model.config.get_text_config()
    number = num_experts(config)
    larger = copy.deepcopy(config)
    set_num_experts(larger, 2 * number)
    try:
        changed = changes(model, larger)
    except Exception as error:  # transformers raises many types for a config that it refuses
        raise ValueError(
            f"its config cannot say another number of experts: {first_line(error)}"
        ) from None
    by_layer: dict[int, dict[str, int]] = {}
    for name, (old, new) in changed.items():
        if not name.startswith(f"{layers}."):
            raise ValueError(f"{name} follows the number of experts too, outside of the layers")
        index = int(name.removeprefix(f"{layers}.").partition(".")[0])
        by_layer.setdefault(index, {})[name] = _dimension(name, old, new, number)
    return [
        _of_layer(model, index, layer, by_layer.get(index, {}))
        for index, layer in enumerate(attrgetter(layers)(model))
        if stacks(layer) or index in by_layer
    ]


def _dimension(name: str, old: tuple[int, ...], new: tuple[int, ...], number: int) -> int:
    """The one dimension of a tensor that has an entry for each expert."""
    differing = [dim for dim, pair in enumerate(zip(old, new, strict=True)) if len(set(pair)) > 1]
    if len(differing) != 1 or (old[differing[0]], new[differing[0]]) != (number, 2 * number):
        raise ValueError(
            f"{name} has shape {old} with {number} experts and {new} with {2 * number}: not one"
            " entry for each"
        )
    return differing[0]


def _of_layer(
    model: "PreTrainedModel", index: int, layer: nn.Module, tensors: dict[str, int]
) -> Routed:
    """A layer's mixture, of the tensors in it that follow the number of experts."""
    found, names = stacks(layer), {module: path for path, module in model.named_modules()}
    if len(found) != 1:
        raise ValueError(f"layer {index} has {len(found)} lists of experts, and not one")
    routed = Routed(names[found[0]], tensors)
    own = [name for name in shapes(model) if name.startswith(f"{routed.stack}.")]
    if missing := [name for name in own if name not in tensors]:
        raise ValueError(f"no field of its config says how many experts {missing[0]} has")
    if not routed.router:
        raise ValueError(f"layer {index} has no router with a row for each expert")
    block = model.get_submodule(routed.stack.rpartition(".")[0])
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        # such as a table that says which experts a token of the vocabulary goes to
        if not tensor.is_floating_point():
            raise ValueError(f"{name} of layer {index} may have experts' numbers in it")
    return routed

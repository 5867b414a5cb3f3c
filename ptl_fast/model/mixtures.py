"""Find what has the width of a model's experts, by building the model with another one.

The model of the same config with experts twice as wide is built on torch's meta device. What has
another shape there follows the field: the experts, and perhaps shared experts and dense layers,
whose neurons then have to go beside theirs.
"""

import copy
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ptl_fast.base.console import first_line
from ptl_fast.model.experts import Beside, Mixture, layout, stacks
from ptl_fast.model.layers import on_meta
from ptl_fast.model.widths import ffn_width, num_experts, set_width

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

Shapes = dict[str, tuple[int, ...]]


def find_mixture(model: "PreTrainedModel", layers: str) -> tuple[Mixture | None, str | None]:
    """(what has the experts' width, None), or (None, why their neurons cannot be removed).

    Args:
        model: with experts; may be on the meta device.
        layers: path of its list of decoder layers.
    """
    config: Any = model.config.get_text_config()
    found = [stack for layer in attrgetter(layers)(model) for stack in stacks(layer)]
    width = ffn_width(config)
    if not found:
        return None, "its experts have a form that is not known"
    if wrong := _unlike(found, width, num_experts(config)):
        return None, wrong
    larger = copy.deepcopy(config)
    set_width(larger, 2 * width)
    try:
        changed = changes(model, larger)
    except Exception as error:  # transformers raises many types for a config that it refuses
        return None, f"its config cannot say another width of its experts: {first_line(error)}"
    own = {id(stack) for stack in found}
    seen = {name.rpartition(".")[0] for name in changed}
    missing = len(own - {id(model.get_submodule(path)) for path in seen})
    if missing:
        return None, "no field of its config says the width of its experts"
    try:
        return Mixture(_beside(model, layers, changed, width)), None
    except ValueError as error:
        return None, str(error)


def _unlike(found: list[nn.Module], width: int, number: int) -> str | None:
    """How the experts differ from what the config says; None: they do not."""
    for stack in found:
        form, down = layout(stack), cast("Tensor", stack.down_proj)
        assert form is not None
        own = down.shape[1 if form.transposed else 2]
        if own != width:
            return f"its experts are {own} wide, and its config says {width}"
        if len(down) != number:
            return f"a layer has {len(down)} experts, and its config says {number}"
    return None


def changes(
    model: "PreTrainedModel", config: "PretrainedConfig"
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """{parameter or buffer: (its shape, its shape in a model of another config)}, of those whose
    shape changes.

    Raises:
        ValueError: the other model has other tensors.
    """
    own, other = shapes(model), shapes(on_meta(config))
    if own.keys() != other.keys():
        raise ValueError(f"{min(own.keys() ^ other.keys())} would be in one of the models alone")
    return {name: (own[name], other[name]) for name in own if own[name] != other[name]}


def shapes(model: nn.Module) -> Shapes:
    """The shape of each parameter and buffer."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def _beside(
    model: "PreTrainedModel", layers: str, changed: dict[str, Any], width: int
) -> tuple[Beside, ...]:
    """The other FFNs that follow the experts' width.

    Raises:
        ValueError: something else follows it.
    """
    # by FFN: the names of its input projections, and of its down projections with their widths
    inputs: dict[str, list[str]] = {}
    downs: dict[str, tuple[str, int]] = {}
    for name, (old, new) in changed.items():
        path, _, tensor = name.rpartition(".")
        module = model.get_submodule(path)
        if layout(module) is not None:
            continue
        if not (isinstance(module, nn.Linear) and name.startswith(f"{layers}.")):
            raise ValueError(f"{name} has the experts' width too, and would have to follow them")
        parent, _, own = path.rpartition(".")
        if tensor == "weight" and old[0] == new[0]:
            downs[parent] = (own, old[1] // width)
        elif own not in inputs.setdefault(parent, []):
            inputs[parent].append(own)
    found = dict.fromkeys(
        _described(layers, parent, inputs.get(parent, []), *downs.get(parent, ("", 0)))
        for parent in inputs.keys() | downs.keys()
    )
    return tuple(sorted(found, key=lambda each: each.path))


def _described(layers: str, parent: str, inputs: list[str], down: str, parts: int) -> Beside:
    path = parent.removeprefix(f"{layers}.").partition(".")[2]
    if not (inputs and down and path) or (parts > 1 and len(inputs) != 2):
        raise ValueError(f"{parent} has the experts' width too, in a form that is not known")
    return Beside(path, tuple(inputs), down, parts)

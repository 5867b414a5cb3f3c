"""Where a model family keeps its decoder layers and its feed-forward network (FFN).

Any model whose layers carry an ``mlp`` with ``gate_proj``, ``up_proj`` and ``down_proj`` works by
structure. A family that differs gets one row in FAMILIES.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_kernels import GatedFfn


@dataclass(frozen=True, kw_only=True)
class Family:
    """Attribute paths: ``layers`` from the model, the others from a layer."""

    layers: str = "model.layers"
    ffn: str = "mlp"
    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Projections into the FFN. A single one holds gate and up, one above the other."""
    down: str = "mlp.down_proj"


STANDARD = Family()
FAMILIES = {"phi3": Family(inputs=("mlp.gate_up_proj",))}


def find_family(model: "PreTrainedModel") -> Family:
    """Return the model's family.

    Raises:
        ValueError: the model does not have the structure that its family, or the standard one,
            expects; names what is missing.
    """
    model_type = getattr(model.config, "model_type", "?")
    family = FAMILIES.get(model_type, STANDARD)
    widths, missing = _widths(model, family)
    if missing is not None:
        raise ValueError(
            f"{type(model).__name__} (model_type {model_type}) is not a supported architecture:"
            " looked for decoder layers at"
            f" {family.layers}, each with linear layers"
            f" {', '.join((*family.inputs, family.down))}, and did not find"
            f" {missing}; a family with other names needs a row in ptl_fast/model/families.py"
        )
    if len(widths) > 1:
        raise ValueError(
            f"{type(model).__name__} has FFNs of different widths {sorted(widths)}; uniform width"
            " is needed"
        )
    return family


def decoder_layers(model: "PreTrainedModel", family: Family) -> "nn.ModuleList":
    """The model's decoder layers, in order."""
    return attrgetter(family.layers)(model)


def feed_forwards(model: "PreTrainedModel", family: Family) -> "dict[str, GatedFfn]":
    """The FFN of each decoder layer, in order, by the layer's number."""
    from ptl_kernels import (
        GatedFfn,  # here, because it brings torch and Triton, and a dry run needs neither
    )

    module, down, inputs = (
        attrgetter(family.ffn),
        attrgetter(family.down),
        [attrgetter(path) for path in family.inputs],
    )
    return {
        str(index): GatedFfn(
            module=module(layer), inputs=[each(layer) for each in inputs], down=down(layer)
        )
        for index, layer in enumerate(decoder_layers(model, family))
    }


def _widths(model: "PreTrainedModel", family: Family) -> tuple[set[int], str | None]:
    """The widths of the model's FFNs, and the first part of the family's structure that it lacks."""
    widths = set[int]()
    try:
        layers = list(enumerate(decoder_layers(model, family)))
    except (AttributeError, TypeError):
        return widths, family.layers
    linears = {path: attrgetter(f"{path}.in_features") for path in (*family.inputs, family.down)}
    for index, layer in layers:
        for path, in_features in linears.items():
            try:
                num_features = in_features(layer)
            except AttributeError:
                return widths, f"{family.layers}.{index}.{path}"
        widths.add(num_features)  # the loop variable is down_proj's in_features here
    return widths, None if layers else "any layer"


def needs_one_row(model: "PreTrainedModel") -> bool:
    """Whether packed sequences must lie in one row: flash-attention finds documents' borders only
    in a batch of one.
    """
    return "flash" in (model.config._attn_implementation or "")


def resize_config(config: "PretrainedConfig", width: int, kept_layers: list[int]) -> None:
    """Set the FFN width and keep only some layers in a model's config, in place, with every list
    that has one entry a layer.
    """
    num_layers, config.intermediate_size = config.num_hidden_layers, width
    if len(kept_layers) == num_layers:
        return
    for name, value in list(vars(config).items()):
        per_layer = isinstance(value, list | tuple) and len(value) == num_layers
        if per_layer and not name.endswith("_token_id") and name != "architectures":
            setattr(config, name, [value[index] for index in kept_layers])
    config.num_hidden_layers = len(kept_layers)

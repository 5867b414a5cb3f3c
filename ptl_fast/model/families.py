"""Where each model family keeps its decoder layers and their feed-forward networks (FFNs).

Any model whose layers have an ``mlp`` with ``gate_proj``, ``up_proj`` and ``down_proj`` is
supported, whatever its name. A family with other names gets one row in FAMILIES.
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
    """Attribute paths of a family's modules: ``layers`` from the model, the others from a layer."""

    layers: str = "model.layers"
    ffn: str = "mlp"
    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """The FFN's input projections: gate and up, or one that fuses them, gate's rows first."""
    down: str = "mlp.down_proj"
    """The FFN's output projection."""


STANDARD = Family()
FAMILIES = {"phi3": Family(inputs=("mlp.gate_up_proj",))}


def find_family(model: "PreTrainedModel") -> Family:
    """Return the model's family, by its config's model_type, and check the model against it.

    Raises:
        ValueError: a module that the family expects is missing (names it), or the FFNs of the
            layers differ in width.
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
    """The FFN of each decoder layer, in order; keys are the layers' indices as strings."""
    # imported here, because it imports torch and Triton, and a dry run needs neither
    from ptl_kernels import GatedFfn

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
    """The widths of the model's FFNs, and the path of the first missing module (None: none is)."""
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
        # left over from the inner loop's last path, the down projection: its in_features
        widths.add(num_features)
    return widths, None if layers else "any layer"


def needs_one_row(model: "PreTrainedModel") -> bool:
    """Whether a batch of packed sequences must be flattened into one row.

    With flash-attention, transformers switches to variable-length attention where positions
    restart, but only in batches of one row.
    """
    return "flash" in (model.config._attn_implementation or "")


def resize_config(config: "PretrainedConfig", width: int, kept_layers: list[int]) -> None:
    """Change a config in place to FFN width ``width`` and only the layers ``kept_layers``.

    Lists with one entry per layer, such as layer_types, lose the entries of the other layers.

    Args:
        kept_layers: indices of the layers that stay, ascending.
    """
    num_layers, config.intermediate_size = config.num_hidden_layers, width
    if len(kept_layers) == num_layers:
        return
    # there is no list of the fields that are per layer, so they are told by their length; lists
    # of token ids and of architectures may have that length by chance
    for name, value in list(vars(config).items()):
        per_layer = isinstance(value, list | tuple) and len(value) == num_layers
        if per_layer and not name.endswith("_token_id") and name != "architectures":
            setattr(config, name, [value[index] for index in kept_layers])
    config.num_hidden_layers = len(kept_layers)

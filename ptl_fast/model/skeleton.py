"""A model without weights, built from its config on torch's meta device, and questions to it.

Two skeletons whose configs differ in one thing show what of a model depends on that thing: the
FFN's width, or the place of a layer among the others. This needs no knowledge of model types.
"""

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ptl_fast.model.families import Family, decoder_layers, find_family, resize_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Config fields that hold the width of FFNs in one model type or another.
WIDTH_FIELDS = ["intermediate_size", "shared_intermediate_size", "block_ff_dim", "ffn_dim"]
WIDTH_FIELDS += ["decoder_ffn_dim", "ffn_hidden_size", "n_inner", "d_inner", "dff", "inner_dim"]
WIDTH_FIELDS += ["moe_intermediate_size"]
# Attributes of a module that say only which layer it is in, or of how many: what a model makes of
# them shows in other attributes.
PLACE = {"layer_idx", "layer_id", "layer_number", "layer_index", "num_hidden_layers", "num_layers"}

Shape = tuple[int, ...]


class Resized(NamedTuple):
    """A parameter whose shape depends on the FFN's width."""

    name: str
    """Within its layer."""
    module: nn.Module
    before: Shape
    after: Shape

    @property
    def is_matrix(self) -> bool:
        return len(self.before) == 2

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer."""
        return self.is_matrix and (isinstance(self.module, nn.Linear) or self._is_turned)

    @property
    def _is_turned(self) -> bool:
        # transformers' Conv1D (GPT-2) stores a linear layer's weight the other way round
        return type(self.module).__name__ == "Conv1D"

    @property
    def is_input(self) -> bool:
        """Whether its outputs are neurons: an input projection's weight."""
        axis = 1 if self._is_turned else 0
        return self.is_matrix and self.before[axis] != self.after[axis]


class Skeleton:
    """A model on the meta device, and what of it depends on what; everything is made when asked."""

    def __init__(self, config: "PretrainedConfig") -> None:
        self.config = config

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model; raises what its class raises for a config that is wrong."""
        return build(self.config)

    @cached_property
    def family(self) -> Family | None:
        """Where its FFNs are; None if they are not found."""
        try:
            return find_family(self.model)
        except ValueError:
            return None

    @cached_property
    def path(self) -> str:
        """The path of its list of decoder layers; empty if there is none."""
        return layers_path(self.model, self.config.num_hidden_layers)

    @property
    def layers(self) -> list[nn.Module]:
        """Its decoder layers; none if they are not found."""
        if self.family is not None:
            return list(decoder_layers(self.model, self.family))
        return list(self.model.get_submodule(self.path).children()) if self.path else []

    @cached_property
    def of_width(self) -> list[list[Resized]]:
        """For each layer the parameters whose shape the FFN's width decides.

        Empty lists if none of WIDTH_FIELDS decides any.
        """
        for field in WIDTH_FIELDS:
            if hasattr(self.config, field):
                found = self._resized_by(field)
                if any(found):
                    return found
        return [[] for _ in self.layers]

    @cached_property
    def without_first_layer(self) -> "Skeleton | None":
        """The model that dropping its first layer would leave; None if it has only one."""
        num_layers = self.config.num_hidden_layers
        if num_layers < 2:
            return None
        shorter = copy.deepcopy(self.config)
        resize_config(shorter, self.config.intermediate_size, list(range(1, num_layers)))
        return Skeleton(shorter)

    def _resized_by(self, field: str) -> list[list[Resized]]:
        """The parameters of each layer that change their shape if a config field is doubled."""
        wider = copy.deepcopy(self.config)
        # GPT-2's family leaves it empty for four times the hidden size
        width = getattr(wider, field) or 4 * self.config.hidden_size
        if not isinstance(width, int):
            return []
        setattr(wider, field, 2 * width)
        try:
            others = Skeleton(wider).layers
        except Exception:  # a field that other fields must agree with: it is not the width alone
            return []
        return [
            [
                Resized(name, _owner(layer, name), tuple(parameter.shape), tuple(new[name].shape))
                for name, parameter in layer.named_parameters()
                if name in new and new[name].shape != parameter.shape
            ]
            for layer, other in zip(self.layers, others, strict=True)
            for new in [dict(other.named_parameters())]
        ]


def build(config: "PretrainedConfig") -> "PreTrainedModel":
    """The causal language model of a config on the meta device: it takes no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # a copy, for the model writes into its config
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)


def model_class(config: "PretrainedConfig") -> Any:
    """The class of a config's causal language model."""
    return type(build(config))


def layers_path(model: nn.Module, num_layers: int) -> str:
    """The path of the list of ``num_layers`` modules that holds most parameters; empty if none."""
    lists = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    }
    return max(lists, key=lists.__getitem__, default="")


def different_structure(one: nn.Module, other: nn.Module) -> str | None:
    """The first module or parameter in which two layers differ, in words; None if there is none."""
    ours, theirs = dict(one.named_modules()), dict(other.named_modules())
    for name in ours | theirs:
        kinds = [type(each[name]).__name__ if name in each else "none" for each in (ours, theirs)]
        if kinds[0] != kinds[1]:
            return f"{name or 'the layer'} is {kinds[0]} there and {kinds[1]} one place further up"
    shapes = [
        {name: tuple(parameter.shape) for name, parameter in each.named_parameters()}
        for each in (one, other)
    ]
    for name in shapes[0] | shapes[1]:
        if shapes[0].get(name) != shapes[1].get(name):
            return f"{name} has another shape one place further up"
    return None


def different_value(one: nn.Module, other: nn.Module) -> str | None:
    """The first plain attribute in which two layers of one structure differ, in words."""
    for (name, ours), (_, theirs) in zip(one.named_modules(), other.named_modules(), strict=True):
        after = dict(_plain_attributes(theirs))
        for attribute, value in _plain_attributes(ours):
            if after.get(attribute, value) != value:
                where = f"{name}.{attribute}".removeprefix(".")
                return f"{where} is {value} there and {after[attribute]} one place further up"
    return None


def _plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of a module that are numbers, texts or lists of such, without its place."""
    for name, value in vars(module).items():
        if name not in PLACE and not name.startswith("_") and _is_plain(value):
            yield name, value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def _owner(layer: nn.Module, name: str) -> nn.Module:
    """The module that holds a parameter."""
    return layer.get_submodule(name.rpartition(".")[0])

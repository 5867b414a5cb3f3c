"""Removing decoder layers from a config, and what a config cannot say of the layers that stay.

Most configs describe their layers by lists, or do not distinguish them: then any may go. Where a
layer's weights or constants follow from its number, or from the number of layers, the layers that
stay would compute something else under their new numbers. This is found out by building the model
that the smaller config describes, on torch's meta device, and comparing it with the original layer
by layer.
"""

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ptl_fast.model.auto_classes import auto_class

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

# Lists of numbers of layers.
INDEX_LISTS = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "kv_source_layers",
    "mlp_only_layers",
    "moe_layers",
    "rope_scaling_layers",
)
# How many layers at the beginning, or (LAST) at the end, are of a kind.
FIRST = (
    "first_k_dense_replace",
    "max_window_layers",
    "moe_layer_start_index",
    "num_dense_layers",
)
LAST = ("num_kv_shared_layers",)
# The last layer of a kind.
HIGHEST = ("moe_layer_end_index",)
# Fields that say the number of layers once more.
NUMBER_TOO = ("num_blocks",)
# Lists that are repeated until there is an entry for each layer.
REPEATED = ("block_types",)
# Lists that have as many entries as there are layers only by chance.
NOT_PER_LAYER = (
    "_token_id",
    "_multipliers",
    "_limit",
    "architectures",
    "attention_types",
    "languages",
    "mtp_layers_block_type",
)
# Modules' own numbers, which follow the layers'.
NUMBERS = ("layer_idx", "layer_id", "layer_number", "layer_index", "layer_num", "block_idx")
# What no comparison on the meta device shows.
DEPENDS_ON_NUMBER = {
    "bailing_hybrid": "the decay of its linear attention follows from a layer's number",
    "minimax": "the decay of its linear attention follows from a layer's number",
    "zaya": "each layer's router reads what the one before it has computed",
    "rwkv": "its weights are rescaled by a layer's number",
}


def follow_layers(config: "PretrainedConfig", kept: Sequence[int]) -> None:
    """Change a config in place to these of its layers: its number of layers, and what it says of
    single ones.

    Lists with one entry per layer, such as layer_types, lose the entries of the other layers; in
    lists of numbers of layers, such as mlp_only_layers, numbers change; numbers of layers at the
    beginning or the end, such as max_window_layers, shrink.

    Args:
        kept: numbers of the layers that stay, ascending.
    """
    number, new = config.num_hidden_layers, {old: index for index, old in enumerate(kept)}
    for name, value in list(vars(config).items()):
        changed: Any
        if isinstance(value, list | tuple):
            changed = _list_after(name, list(value), number, new)
        elif isinstance(value, int) and not isinstance(value, bool):
            changed = _count_after(name, value, number, new)
        else:
            continue
        if changed is not None:
            setattr(config, name, type(value)(changed) if isinstance(value, tuple) else changed)
    # configs of single layers (Gemma 4): transformers checks them against the number of layers
    single = vars(config).get("_heterogeneity_spec")
    if single is not None:
        config.per_layer_config = None
    for name in ("num_hidden_layers", *NUMBER_TOO):
        if getattr(config, name, None) == number:
            setattr(config, name, len(kept))
    if single is not None:
        overrides = single.per_layer_overrides
        config.per_layer_config = {new[old]: overrides[old] for old in overrides if old in new}


def _list_after(name: str, value: list, number: int, new: dict[int, int]) -> list | None:
    """What a list becomes, if it is about layers; else None."""
    if name in INDEX_LISTS:
        return [new[old] for old in value if old in new]
    if name in REPEATED and value:
        return [value[old % len(value)] for old in new]
    if name == "attention_types":  # GPT-Neo: [[kinds, how often], ...]
        kinds = [kind for group, times in value for _ in range(times) for kind in group]
        return [[[kinds[old] for old in new], 1]] if len(kinds) == number else None
    # there is no list of the fields that are per layer, so they are told by their length
    if len(value) == number and not name.endswith(NOT_PER_LAYER):
        return [value[old] for old in new]
    return None


def _count_after(name: str, value: int, number: int, new: dict[int, int]) -> int | None:
    """What a number becomes, if it counts layers; else None."""
    if name in FIRST:
        # at or beyond the number of layers it says "all", and so it does afterwards
        return sum(old < value for old in new) if value < number else None
    if name in LAST:
        return sum(old >= number - value for old in new)
    if name in HIGHEST:
        return sum(old <= value for old in new) - 1 if value >= 0 else value
    return None


def number_layers(layers: "nn.ModuleList", kept: Sequence[int]) -> None:
    """Renumber the modules of layers that were ``kept``: ``layer_idx`` selects their entry in the
    KV cache.
    """
    for index, (old, layer) in enumerate(zip(kept, layers, strict=True)):
        for module in layer.modules():
            for name in NUMBERS:
                value = vars(module).get(name)
                # some count from 1
                if isinstance(value, int) and value in (old, old + 1):
                    setattr(module, name, value - old + index)


def on_meta(config: "PretrainedConfig") -> Any:
    """Build the model of a config on torch's meta device, which allocates no memory."""
    import torch

    # a generator that is put back: building must not change what a run draws
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return auto_class(config).from_config(copy.deepcopy(config), trust_remote_code=False)


def why_not_without(
    config: "PretrainedConfig", path: str, kept: Sequence[int], original: Any = None
) -> str | None:
    """Why a model cannot do with these of its layers; None: it can, and they compute the same.

    Args:
        path: of the decoder layers, from the model.
        kept: numbers of the layers that stay, ascending.
        original: the whole model on the meta device, if the caller has it.
    """
    if (reason := DEPENDS_ON_NUMBER.get(config.model_type)) is not None:
        return reason
    original = on_meta(config) if original is None else original
    if shared := _shared(original, path):
        return f"its layers share {shared}"
    smaller = copy.deepcopy(config)
    try:
        follow_layers(smaller, kept)
        rebuilt = on_meta(smaller)
        layers = attrgetter(path)(rebuilt)
    except Exception as error:  # transformers raises many types for a config that it refuses
        return f"its config cannot describe the layers that stay ({type(error).__name__}: {error})"
    if len(layers) != len(kept):
        return f"its config then describes {len(layers)} layers, not {len(kept)}"
    outside = [
        {name: tensor.shape for name, tensor in each.state_dict().items() if f"{path}." not in name}
        for each in (original, rebuilt)
    ]
    # in the model's order, so that the first is always the same
    for name in dict.fromkeys([*outside[0], *outside[1]]):
        if outside[0].get(name) != outside[1].get(name):
            return f"{name}, which is outside the layers, depends on their number"
    for old, layer in zip(kept, layers, strict=True):
        if difference := _difference(attrgetter(path)(original)[old], layer):
            return f"layer {old} depends on its number, or on the number of layers: {difference}"
    return None


def layers_that_stay(config: "PretrainedConfig", path: str) -> dict[int, str]:
    """{number of a layer that cannot go by itself: why}; a build of the model for each layer."""
    original, number = on_meta(config), config.num_hidden_layers
    reasons = {
        layer: why_not_without(
            config, path, [each for each in range(number) if each != layer], original
        )
        for layer in range(number)
    }
    return {layer: reason for layer, reason in reasons.items() if reason is not None}


def attention_pattern(config: "PretrainedConfig", number: int) -> list[str] | None:
    """The kinds of attention of ``number`` layers by the pattern of the config's class, which
    engines follow that do not read layer_types; None: the config has no such pattern.
    """
    kinds = getattr(config, "layer_types", None)
    if not kinds or len(set(kinds)) == 1 or "layer_types" not in vars(config):
        return None
    if _by_class(config, config.num_hidden_layers) != list(kinds):
        return None
    return _by_class(config, number)


def _by_class(config: "PretrainedConfig", number: int) -> list[str] | None:
    """The layer_types that the config's class gives to so many layers by itself."""
    settings = {**config.to_dict(), "num_hidden_layers": number}
    per_layer = [
        name
        for name, value in settings.items()
        if isinstance(value, list)
        and len(value) == config.num_hidden_layers
        and not name.endswith(NOT_PER_LAYER)
    ]
    for name in {*per_layer, *INDEX_LISTS} & settings.keys():
        del settings[name]
    try:
        return list(type(config)(**settings).layer_types)
    except Exception:  # a class that needs its lists has no pattern
        return None


def _shared(model: Any, path: str) -> str | None:
    """The name of a parameter that two layers share; None: there is none."""
    seen: dict[int, int] = {}
    for index, layer in enumerate(attrgetter(path)(model)):
        for name, parameter in layer.named_parameters():
            if seen.setdefault(id(parameter), index) != index:
                return name
    return None


def _difference(original: "nn.Module", rebuilt: "nn.Module") -> str | None:
    """The first thing in which two layers differ, but for their numbers; None: nothing."""
    ours, theirs = dict(original.named_modules()), dict(rebuilt.named_modules())
    if ours.keys() != theirs.keys():
        only = min(ours.keys() ^ theirs.keys())
        return f"under its new number it would not have the same modules (such as {only})"
    for path, module in ours.items():
        described = _described(module), _described(theirs[path])
        for name in described[0].keys() | described[1].keys():
            before, after = (each.get(name) for each in described)
            if before != after:
                place = f"{path}.{name}" if path else name
                return f"{place} is {before}, and would be {after}"
    return None


def _described(module: "nn.Module") -> dict[str, Any]:
    """What a module's computation may depend on: its class, shapes of its tensors, constants."""
    tensors = {
        name: tuple(tensor.shape)
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
    }
    constants = {
        name: value
        for name, value in vars(module).items()
        if name not in NUMBERS and (value is None or isinstance(value, bool | int | float | str))
    }
    return {"class": type(module).__name__, **tensors, **constants}

"""The type of saved weights: that of the original, whatever type the computation has.

On a CPU a bf16 model computes in float32, so its weights are rounded before they are saved. That is
done in memory, before the evaluation: what is measured is what is saved, bit for bit, and a run
that loads a saved round goes on from the weights that an undisturbed one has.
"""

import contextlib
import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_fast.config.model import ModelSettings

# as safetensors names them. 8-bit types are none that a model without a quantizer is saved in
FLOAT_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def original_dtype(folder: Path | None, config: "PretrainedConfig") -> torch.dtype:
    """The type of a model's weights: what its config says, but no wider than its files hold.

    Args:
        folder: where its weights are; None if they are not in a folder.
    """
    found = [dtype for dtype in (_config_dtype(config), _files_dtype(folder)) if dtype is not None]
    return min(found, key=lambda dtype: dtype.itemsize, default=torch.float32)


def saved_dtype(
    settings: "ModelSettings", device: str, folder: Path | None, config: "PretrainedConfig"
) -> torch.dtype:
    """The type in which a run saves weights: --save-dtype, or the narrower one of the original's
    and the computation's.
    """
    if settings.save_dtype not in ("auto", "computed"):
        return getattr(torch, settings.save_dtype)
    original = original_dtype(folder, config)
    computed = torch.float32 if device == "cpu" else _config_dtype(config) or original
    if settings.dtype != "auto":
        computed = getattr(torch, settings.dtype)
    if settings.save_dtype == "computed":
        return computed
    # a wider type would hold nothing that the computation has not rounded away
    return min(computed, original, key=lambda dtype: dtype.itemsize)


def as_computed(
    settings: "ModelSettings", device: str, original: "PretrainedConfig"
) -> "ModelSettings":
    """The settings with which a round's weights are loaded, to compute in the original's type also
    where they were saved in another one.
    """
    dtype = _config_dtype(original)
    # on a CPU, auto is float32 whatever the config says
    if settings.dtype != "auto" or device == "cpu" or dtype is None:
        return settings
    name: Any = str(dtype).removeprefix("torch.")
    return dataclasses.replace(settings, dtype=name)


def stored_types(model: "PreTrainedModel", dtype: torch.dtype) -> dict[str, torch.dtype]:
    """{parameter's name: type} in a file whose weights are of type ``dtype``.

    They differ where transformers keeps a parameter in float32 whatever type is asked for, such as
    the router's bias of some mixtures of experts. Tied parameters have an entry for each name.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if dtype == torch.float32:
        return dict.fromkeys(names, dtype)
    empty = on_meta(model, dtype)
    own = {name: parameter.dtype for name, parameter in empty.named_parameters()}
    # what from_pretrained itself reads: globs, found anywhere in a name
    plan: dict[str, torch.dtype] = empty._get_dtype_plan(dtype)
    types = {}
    for name in names:
        kept = [plan[glob] for glob in plan if re.search(glob.replace("*", ".*"), name)]
        types[name] = kept[0] if kept else own.get(name, dtype)
    return types


def on_meta(model: "PreTrainedModel", dtype: torch.dtype) -> "PreTrainedModel":
    """The model built anew from its config in a type, without memory for its weights."""
    default, build = torch.get_default_dtype(), type(model)
    config = copy.deepcopy(model.config)
    # a vision tower is built in the type that its own config says
    for part in _sub_configs(config):
        part.dtype = dtype
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            return build(config)
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def round_(model: "PreTrainedModel", dtype: torch.dtype) -> None:
    """Round the parameters, in place, to what a file of type ``dtype`` holds."""
    types = stored_types(model, dtype)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != types[name]:
            parameter.copy_(parameter.to(types[name]))


@contextlib.contextmanager
def stored_as(model: "PreTrainedModel", dtype: torch.dtype) -> Iterator[None]:
    """Have the parameters in the types of a file inside the context, as ``save_pretrained`` writes
    parameters and config as they are; afterwards they are as before, but for rounding.

    One tensor at a time: no second model is in memory.
    """
    types, before = stored_types(model, dtype), dict[str, torch.dtype]()
    configs = [model.config, *_sub_configs(model.config)]
    said = [config.dtype for config in configs]
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != types[name]:
            before[name] = parameter.dtype
            parameter.data = parameter.data.to(types[name])
    for config in configs:
        config.dtype = dtype
    try:
        yield
    finally:
        parameters = dict(model.named_parameters())
        for name, own in before.items():
            parameters[name].data = parameters[name].data.to(own)
        for config, own_said in zip(configs, said, strict=True):
            config.dtype = own_said


def _config_dtype(config: "PretrainedConfig") -> torch.dtype | None:
    """The type that a config gives, or the config of its text model; None: none of them does."""
    for each in (config, config.get_text_config()):
        dtype = getattr(each, "dtype", None)
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, None)
        if dtype in FLOAT_TYPES.values():
            return dtype
    return None


def _files_dtype(folder: Path | None) -> torch.dtype | None:
    """The type of most of the numbers in a folder's safetensors files, from their headers; None
    without such files.
    """
    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  it is no dict
                    held = tensors.get_slice(name)
                    counts[held.get_dtype()] += torch.Size(held.get_shape()).numel()
        except (OSError, SafetensorError):  # loading says what is wrong with it
            continue
    known = [name for name, _ in counts.most_common() if name in FLOAT_TYPES]
    return FLOAT_TYPES[known[0]] if known else None


def _sub_configs(config: Any) -> list[Any]:
    """The configs inside a config, such as a multimodal model's text config."""
    own = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [each for each in own if each is not None]

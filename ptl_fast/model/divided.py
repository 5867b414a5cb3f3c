"""A model that ZeRO-3 divides over the ranks while it is loaded, and written as it is divided.

Loaded whole and then divided, every rank needs memory for all of it, before a training and after.
Here each rank reads a decoder layer, keeps its part, and reads the next; and the trained weights
are gathered a tensor at a time, of which the main rank keeps those of a file until it is written.
"""

import shutil
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ptl_fast.base import distributed
from ptl_fast.base.run_files import StreamedFolder
from ptl_fast.base.stored import TensorFile
from ptl_fast.model.families import decoder_layers
from ptl_fast.model.layers_on_disk import LayersOnDisk

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


def load(
    folder: Path, config: "PretrainedConfig", dtype: torch.dtype, device: str
) -> "PreTrainedModel":
    """Load a model of which each rank keeps its part. All ranks must call this.

    Args:
        folder: of ordinary weights in safetensors files.
        dtype: of the computation.

    Raises:
        ValueError: as for ``LayersOnDisk``.
    """
    source = LayersOnDisk(folder, config, dtype, device)
    for number, layer in enumerate(decoder_layers(source.model, source.family)):
        source.load(number)
        _divide_(layer, dtype)
    source.load_head()
    _divide_(source.model, dtype)
    return source.model


def _divide_(module: "nn.Module", dtype: torch.dtype) -> None:
    """Leave this rank's part of the parameters that are not divided yet."""
    import deepspeed

    module.requires_grad_(True)
    deepspeed.zero.Init(module=module, dtype=dtype)


def is_divided(model: "nn.Module") -> bool:
    """Whether ZeRO-3 has divided a model's parameters over the ranks."""
    # DeepSpeed gives every parameter that it shards a ds_id
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@torch.no_grad()
def write(
    model: "PreTrainedModel", like: StreamedFolder, folder: StreamedFolder, dtype: torch.dtype
) -> None:
    """Write a divided model in a type, its tensors in files as they were before its training.

    All ranks must call this; the main rank writes.

    Args:
        like: the model that was loaded, whose other files are copied.
    """
    import deepspeed

    parameters = dict(model.named_parameters(remove_duplicate=False))
    index = like.index.found()
    folder.index.remove()
    files = sorted((file, name) for name, file in index["weight_map"].items())
    for file, entries in groupby(files, key=lambda each: each[0]):
        tensors: dict[str, Any] = {}
        for _, name in entries:
            with deepspeed.zero.GatheredParameters([parameters[name]]):
                if distributed.is_main():
                    tensors[name] = parameters[name].detach().to("cpu", dtype, copy=True)
        TensorFile(folder.path / file).write(tensors, {"format": "pt"})
    if distributed.is_main():
        for path in like.path.glob("*.json"):
            if path != like.index.path:
                shutil.copyfile(path, folder.path / path.name)
    folder.index.write(index)

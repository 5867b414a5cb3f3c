"""Compare a saved model with the shards that it was made of, one tensor at a time.

Where no whole model is in memory, this stands for ``saved_model_check``: every field of the config
is compared, the tensors' names, shapes and types with those of a model built from it without
weights, and every tensor with its shard's, bit for bit.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ptl_fast.base.console import first_line
from ptl_fast.model import saved_model_check, tying
from ptl_fast.model.layers import on_meta
from ptl_fast.model.layers_on_disk import StoredTensors
from ptl_fast.model.precision import stored_types

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What a config says of the file and of whoever wrote it.
OF_THE_FILE = {"architectures", "dtype", "transformers_version", "_name_or_path"}


def difference(
    folder: Path, shards: Path, config: "PretrainedConfig", dtype: torch.dtype
) -> str | None:
    """Say what is the first thing in which a saved model differs from its shards, or from a config.

    Two tensors are in memory at a time.

    Args:
        folder: where the model was saved.
        shards: a folder with the weights that it must have.
        config: what it must be built from.
        dtype: of the saved weights.

    Returns:
        A clause that names the tensor or the module; None if there is no difference.
    """
    from transformers import AutoConfig

    try:
        saved = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        built = on_meta(saved)
    except Exception as error:  # transformers raises many types
        return f"it cannot be loaded: {first_line(error)}"
    said = tying.says_tied(saved)
    tying.correct_config_(saved, folder)
    if said and not tying.says_tied(saved):
        return "its config says tie_word_embeddings, and its head has weights of its own"
    return (
        _config_difference(config, saved)
        or _header_difference(StoredTensors(folder), built, dtype)
        or _tensor_difference(StoredTensors(folder), StoredTensors(shards))
    )


def _config_difference(config: "PretrainedConfig", saved: "PretrainedConfig") -> str | None:
    """The first field in which two configs differ, but for what says nothing of the model."""
    # as both are in a file: tuples are lists there
    own, other = (json.loads(each.to_json_string(use_diff=False)) for each in (config, saved))
    for name in sorted((own.keys() | other.keys()) - OF_THE_FILE):
        if own.get(name) != other.get(name):
            return f"config.json has {name} {other.get(name)}, and was made with {own.get(name)}"
    return None


def _header_difference(stored: StoredTensors, built: Any, dtype: torch.dtype) -> str | None:
    """The first tensor that a model of this config has not, or in another shape or type."""
    wanted, types = built.state_dict(), stored_types(built, dtype)
    # a tied head need not be stored
    for name, _ in built.named_parameters():
        if name not in stored.places:
            return f"{name} is missing"
    for name, place in stored.places.items():
        if name not in wanted:
            return f"{name} has no place in a model of this config"
        if place.shape != list(wanted[name].shape):
            return f"{name} has another shape than the config says"
        if place.dtype != types.get(name, place.dtype):
            return f"{name} is saved as {place.dtype}, and should be {types[name]}"
    return None


def _tensor_difference(saved: StoredTensors, pruned: StoredTensors) -> str | None:
    """The first tensor that is not the same, bit for bit."""
    for name in sorted(saved.places.keys() ^ pruned.places.keys()):
        return f"{name} is only in the {'saved' if name in saved.places else 'pruned'} model"
    for name in pruned.places:
        if not saved_model_check.same_bits(pruned.read(name), saved.read(name)):
            return f"{name} has other values"
    return None

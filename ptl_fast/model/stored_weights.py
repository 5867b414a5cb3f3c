"""Have a model's weights as ordinary ones, whatever form they are stored in, and say what was done.

Quantized weights are dequantized (model/quantized.py), an adapter is merged if that was asked for
(model/adapters.py), and code that a repository brings is never run.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, GenerationConfig

from ptl_fast.base.console import reason
from ptl_fast.model import padding
from ptl_fast.model.adapters import check_adapter, merge_adapter_
from ptl_fast.model.auto_classes import auto_class
from ptl_fast.model.checkpoint import (
    ADAPTER_CONFIG,
    CONFIG,
    Checkpoint,
    bundled,
    find_checkpoint,
    folder_of,
    read_tensors,
    weight_files,
)
from ptl_fast.model.damaged_files import blame
from ptl_fast.model.layers import on_meta
from ptl_fast.model.quantized import check_stored, find_quantization, method_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.model import ModelSettings

NEEDS_CODE = (
    "needs Python code from its own repository, and ptl_fast never runs such code"
    " (trust_remote_code); use a model that transformers itself has"
)


REVISION_FLAGS = {"--model": "--revision", "--teacher": "--teacher-revision"}
# what to do about an adapter, by the flag that named its folder
ADAPTER_REMEDIES = {
    "--model": "add --merge-adapter to merge it into the weights, or give a folder without it",
    "--teacher": "merge it first, and give that folder, or give a folder without it",
}


def find(name: str, settings: "ModelSettings | None" = None, flag: str = "--model") -> Checkpoint:
    """Look at what a model's folder or repository holds; arguments as of ``load_config``.

    Raises:
        ValueError: there is no such model, or its weights cannot be had as ordinary ones.
    """
    revision = settings.revision if settings is not None else None
    path = Path(bundled(name))
    if revision is not None and path.exists():
        raise ValueError(
            f"{REVISION_FLAGS[flag]} {revision} is for a model of the hub, and {name} is a folder;"
            " leave it out"
        )
    if path.is_dir() and not any((path / file).is_file() for file in (CONFIG, ADAPTER_CONFIG)):
        raise ValueError(
            f"{name} is not a model folder: it has no config.json; give a folder saved by"
            " save_pretrained"
        )
    if path.exists() and not path.is_dir():
        raise ValueError(f"{flag} {name} is a file; give the folder that save_pretrained wrote")
    try:
        checkpoint = find_checkpoint(name, revision)
    # the last two: of transformers, about a config.json that is null, or nested too deep
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{flag} {name} cannot be loaded: {_reason(path, revision, error)}"
        ) from error
    merges = settings is not None and settings.merge_adapter
    if merges and checkpoint.adapter is None:
        raise ValueError(
            f"--merge-adapter: {name} holds no adapter ({ADAPTER_CONFIG}); leave the flag out"
        )
    if checkpoint.adapter is not None and not merges:
        raise ValueError(
            f"{flag} {name} holds a {checkpoint.adapter.kind} adapter ({ADAPTER_CONFIG});"
            f" {ADAPTER_REMEDIES[flag]}"
        )
    try:
        if checkpoint.adapter is not None:
            check_adapter(checkpoint.adapter)
        if checkpoint.quantization is not None:
            find_quantization(checkpoint.quantization)
    except ValueError as error:
        raise ValueError(f"{flag} {name} cannot be used: {error}") from error
    return checkpoint


def _reason(path: Path, revision: str | None, error: Exception) -> str:
    """Why a model cannot be found, in a few words."""
    if path.exists():
        return f"{reason(error)}{blame(path)}"
    of_revision = f" (revision {revision})" if revision is not None else ""
    return f"no such folder, and not found on the hub or in its cache{of_revision}"


def read_config(checkpoint: Checkpoint) -> "PretrainedConfig":
    """A checkpoint's config, without its quantization and a padding token without an embedding."""
    config = _own_config(checkpoint)
    padding.drop_padding_(config)
    for each in (config, config.get_text_config()):
        for field in ("quantization_config", "compression_config"):
            vars(each).pop(field, None)
    return config


def _own_config(checkpoint: Checkpoint) -> "PretrainedConfig":
    return AutoConfig.from_pretrained(
        checkpoint.name, revision=checkpoint.revision, trust_remote_code=False
    )


def load_stored(checkpoint: Checkpoint, dtype: torch.dtype | str) -> Any:
    """Load a checkpoint's model; return it and what transformers says of missing tensors."""
    if checkpoint.quantization is None and checkpoint.adapter is None:
        if Path(checkpoint.name).is_dir():
            weight_files(Path(checkpoint.name))  # refuses pipes, which would be waited for
            check_stored(Path(checkpoint.name))
        config = _own_config(checkpoint)
        # a config that was read already is taken as it is, so only where it must be another
        corrected = {"config": config} if padding.drop_padding_(config) else {}
        return auto_class(config).from_pretrained(
            checkpoint.name,
            revision=checkpoint.revision,
            dtype=dtype,
            output_loading_info=True,
            # its own error names no weight: whoever loads looks at the list of those that differ
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **corrected,
        )
    # read here: transformers pads blocks otherwise and would quantize again on saving, and loads an
    # adapter only beside the weights, where PEFT is installed
    config, stored = read_config(checkpoint), read_tensors(folder_of(*checkpoint.place))
    if isinstance(dtype, torch.dtype):
        wanted = dtype
    else:
        halves = (each.dtype for each in stored.values() if each.dtype.itemsize > 1)
        own = config.dtype
        wanted = own if isinstance(own, torch.dtype) else next(halves)
    if checkpoint.quantization is not None:
        method = find_quantization(checkpoint.quantization)
        stored = method.dequantize(stored, checkpoint.quantization, wanted)
    where: Any = {"revision": checkpoint.revision}
    try:
        generation = GenerationConfig.from_pretrained(checkpoint.name, **where)
    except OSError:
        generation = None  # the model makes its own from its config
    model, info = type(on_meta(config)).from_pretrained(
        None,
        config=config,
        state_dict=stored,
        dtype=wanted,
        generation_config=generation,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if checkpoint.adapter is not None:
        merge_adapter_(model, checkpoint.adapter)
    return model, info


def notes(name: str, settings: "ModelSettings", flag: str = "--model") -> list[str]:
    """What is done to a model's stored weights before anything else, in sentences."""
    checkpoint, said = find(name, settings, flag), list[str]()
    quantization = checkpoint.quantization
    if quantization is not None:
        what = find_quantization(quantization).what
        said.append(
            f"{flag} {name}: its weights are stored as {what} ({method_name(quantization)});"
            " they are dequantized on loading, and the result is an ordinary checkpoint."
        )
    if checkpoint.adapter is not None:
        said.append(
            f"{flag} {name}: its {checkpoint.adapter.kind} adapter is merged into the weights of"
            f" {checkpoint.name}."
        )
    return said

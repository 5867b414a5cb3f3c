"""Save a round that was pruned layer by layer, without the whole model ever in memory.

Where nothing is trained or measured behind pruning, the shards that ``run.streamed`` has written
are the result: they are copied, and what was copied is compared with them and tried, a tensor or a
layer at a time.
"""

import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ptl_fast.data.batching import document_batches
from ptl_fast.model import (
    as_users_run_it,
    companions,
    loading,
    padding,
    precision,
    saved_model_check,
    saved_shards_check,
)
from ptl_fast.model.layers import on_meta
from ptl_fast.model.layers_on_disk import LayersOnDisk
from ptl_fast.run import save_step, sizes
from ptl_fast.scoring.one_layer import walking

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.base.run_files import StreamedFolder
    from ptl_fast.base.stored import ModelFolder
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext


def save(
    context: "RunContext", step: "Round", folder: "ModelFolder", pruned: "StreamedFolder"
) -> None:
    """Copy a round's shards into its model's folder, and check what was copied.

    All ranks must call this; the main rank saves.

    Raises:
        ValueError: the saved model is not the one that was pruned, or does not compute; raised on
            every rank. The folder does not appear.
        StorageFailed: it does not fit on the disk, or cannot be written.
    """
    name = save_step.name(context)
    shards = sorted(pruned.path.glob("*.safetensors"))

    @saved_model_check.on_this_rank_alone()
    def write(path: Path) -> None:
        for file in (*shards, pruned.index.path, pruned.path / "config.json"):
            shutil.copyfile(file, path / file.name)
        _write_generation(pruned.path, path)
        companions.write(name, path, context.config.model)
        config = sizes.config_after(context.original, step)
        found = saved_shards_check.difference(path, pruned.path, config, context.saved_dtype)
        save_step.check(context, path, found, None if found else _why_not(context, path))

    folder.fill(write, sum(file.stat().st_size for file in shards))


def _write_generation(source: Path, folder: Path) -> None:
    """Write the generation config as a model does that is loaded and saved."""
    from transformers import GenerationConfig

    model = on_meta(loading.load_config(str(source)))
    # a folder need not have one
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(source)
    padding.drop_generated_padding_(model)
    model.generation_config.save_pretrained(folder)


def _why_not(context: "RunContext", path: Path) -> str | None:
    """Say why the saved model does not compute, in the run's type and in its own; None: it does."""
    settings = precision.as_computed(context.config.model, context.device, context.original)
    computed = loading.computed_dtype(settings, context.device, context.original)
    measured = _states(context, path, computed)
    if not measured.isfinite().all():
        return "an activation is NaN or infinite"
    if context.saved_dtype == computed:
        return None
    found = _states(context, path, context.saved_dtype)
    return as_users_run_it.why_apart(
        found, measured, context.saved_dtype, computed, "hidden states"
    )


@torch.inference_mode()
def _states(context: "RunContext", path: Path, dtype: torch.dtype) -> "Tensor":
    """The hidden states behind the last layer of a few of the run's tokens, (tokens, hidden)."""
    tokens = context.data.one_sequence()
    source = LayersOnDisk(path, loading.load_config(str(path)), dtype, context.device)
    loading.set_attention_(source.model, context.config.model, context.device)
    with ExitStack() as stack:
        with source.layer(0) as first:
            walk = walking(source.model, source.family, [tokens], 1, first)
            view = stack.enter_context(walk)
        source.forget_embedding()
        for number in range(source.num_layers):
            with source.layer(number) as layer, view.at(layer):
                for batch in document_batches(view, tokens, 1, "try what was saved"):  # type: ignore[arg-type]
                    view(**batch.inputs)
        return torch.cat([each.flatten(0, 1) for each in view.states.before.values()])

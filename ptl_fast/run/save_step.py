"""Save a round's model, and make sure that what was saved is what was measured."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ptl_fast.base.disk import model_bytes
from ptl_fast.model import as_users_run_it, companions, parts, precision, saved_model_check

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ptl_fast.base.stored import ModelFolder
    from ptl_fast.run.context import RunContext

# Tokens that the saved model is compared on: the logits' cost is nothing beside loading it.
NUM_SEQUENCES, NUM_TOKENS = 2, 48
ANY_TEXT = "What is saved is what was measured: 1 + 1 = 2, 2 + 2 = 4, 3 + 3 = 6, 4 + 4 = 8."


def check_pruned(model: "PreTrainedModel") -> None:
    """Check that a pruned model, with all of its parts, is the one that its config describes,
    before it is measured.

    Raises:
        ValueError: it is not, so that what would be saved after its training were another model.
    """
    found = saved_model_check.structure_difference(parts.whole_of(model))
    if found is not None:
        raise ValueError(
            f"the pruned model is not the one that its config describes: {found}. It is neither"
            " trained nor measured; the same command goes on from here once this is mended"
        )


def save_model(context: "RunContext", folder: "ModelFolder", model: "PreTrainedModel") -> None:
    """Round the model to the type that it is saved in, save it, and compare what was saved with it.
    Of a text decoder inside a model of several parts, the whole is saved.

    All ranks must call this: each has the model, and the main rank saves.

    Raises:
        ValueError: the saved model, loaded from its folder alone, is not the one in memory; raised
            on every rank. The folder does not appear, so a run that is started again comes here
            again.
        StorageFailed: it does not fit on the disk, or cannot be written.
    """
    model = parts.whole_of(model)
    precision.round_(model, context.saved_dtype)

    def write(path: Path) -> None:
        with precision.stored_as(model, context.saved_dtype):
            model.save_pretrained(path)
        companions.write(name(context), path, context.config.model)
        saved = (path, model, context.saved_dtype, _tokens(context))
        found = saved_model_check.difference(*saved)
        check(context, path, found, None if found else as_users_run_it.why_not(*saved))

    folder.fill(write, model_bytes(model, context.saved_dtype.itemsize))


def check(context: "RunContext", path: Path, found: str | None, why_not: str | None) -> None:
    """Raise ValueError unless what was saved is what was measured, and runs in its own type.

    Args:
        found: how its weights or its config differ; None if they do not.
        why_not: it does not run in the type of its file; None if it does.
    """
    found = found or companions.difference(name(context), path, context.config.model)
    if found is not None:
        raise ValueError(
            f"the model that was saved, {path}, is not the one that was measured: {found}. It is"
            " not published; what came before is kept, so that the same command goes on from"
            " there once this is mended"
        )
    if why_not is not None:
        raise ValueError(
            f"the model that was saved, {path}, cannot be used as it is: {why_not}, and another"
            " --output. It is not published"
        )


def name(context: "RunContext") -> str:
    """The original's name."""
    given = context.config.model.model
    assert given is not None
    return given


def _tokens(context: "RunContext") -> "Tensor":
    """A little text: that of the first round, or any if the quality gate has left no round."""
    if context.data.training:
        return context.data.training[0].input_ids[:NUM_SEQUENCES, :NUM_TOKENS]
    ids = context.inputs.tokenizer(ANY_TEXT)["input_ids"]
    return torch.tensor([ids[:NUM_TOKENS]])

"""Load the weights of a round, or of the original, into the context."""

import dataclasses
import functools
from typing import TYPE_CHECKING

from ptl_fast.base import memory
from ptl_fast.model import families, loading, precision
from ptl_fast.run import model_memory, prune_step
from ptl_fast.run.context import LoadedModel

if TYPE_CHECKING:
    from pathlib import Path

    from ptl_fast.run.context import RunContext


def load_weights(context: "RunContext", number: int, extension: int = 0) -> None:
    """Load the weights that a round left (0: the original), and check that they compute.

    Resets what belongs to the model in memory: optimizer state and Gram matrices.

    Args:
        number: the round, from 1, or 0.
        extension: how often the quality gate had extended the round's recovery; 0 if never, and
            for a round that is finished.

    Raises:
        ValueError: the model does not fit in memory, the tokenizer has ids without an embedding,
            or an activation is not finite.
    """
    load_folder(context, context.folder.round(number).model(extension).path if number else None)


def load_later(context: "RunContext", number: int) -> None:
    """The same, when something asks for the model: until then none is in memory."""
    context.release()
    context.deferred = functools.partial(load_weights, context, number)


def load_folder(context: "RunContext", folder: "Path | None") -> None:
    """The same of any folder with a model that the original was made into; None: the original."""
    settings = context.config.model
    assert settings.model is not None
    source = settings.model
    if folder is not None:
        source = str(folder)
        # those of the original, which a round's model is made of
        settings = dataclasses.replace(settings, revision=None, merge_adapter=False)
    config = context.original if folder is None else loading.load_config(source)
    needed = model_memory.weight_bytes(context.config, context.device, config)
    settings = precision.as_computed(settings, context.device, context.original)
    with memory.allocating(
        f"loading the weights of {source}", needed, context.device, model_memory.REMEDY
    ):
        model = loading.load_model(source, settings, context.device)
    prune = context.config.prune
    # whole experts are watched as their neurons are
    needs_neurons = prune.keep < 1 or prune.keep_experts < 1
    family = families.find_family(model, needs_neurons=needs_neurons)
    # on a GPU, an id out of range is a device-side assertion without a word about the cause
    check_embeddings(context, source, len(model.get_input_embeddings().weight))  # type: ignore[arg-type]
    # from now on sizes count a head of its own, also of weights whose names its files do not tell
    context.original.tie_word_embeddings = model.config.tie_word_embeddings
    context.loaded = LoadedModel(model=model, family=family)
    prune_step.check_weights(context)


def check_embeddings(context: "RunContext", source: str, num_embeddings: int) -> None:
    """Raise ValueError if the data has a token without an embedding."""
    if max(int(tokens.input_ids.max()) for tokens in context.data.training) >= num_embeddings:
        raise ValueError(
            f"--model {source}: its tokenizer gives ids beyond the model's"
            f" {num_embeddings} embeddings"
        )

"""The first half of a round with --stream: planned and pruned layer by layer, from the disk.

``run.streamed`` does both at once, so planning a round writes the pruned checkpoint too, into the
round's folder; pruning then loads it, where anything needs the whole model. While layers are walked
no other model is in memory. Plan, statistics and weights are those of ``run.prune_step``.
"""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.console import say
from ptl_fast.baselines import SCORERS
from ptl_fast.config.trainer import zero_stage
from ptl_fast.model import divided, families, loading, precision
from ptl_fast.model.layers_on_disk import LayersOnDisk
from ptl_fast.pruning.round_kinds import neuron_scores
from ptl_fast.recovery import registry
from ptl_fast.run import prune_step, streamed
from ptl_fast.run.context import LoadedModel
from ptl_fast.run.rounds import kind_of
from ptl_fast.run.weights import check_embeddings, load_folder
from ptl_fast.scoring import ridge

if TYPE_CHECKING:
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext


def applies(context: "RunContext", step: "Round") -> bool:
    """Whether a round is pruned layer by layer."""
    return context.config.model.stream and kind_of(step).size == "width"


def check(context: "RunContext", number: int) -> None:
    """Make sure that the layers of round ``number``'s model (0: the original) can be read one by
    one.

    Raises:
        ValueError: its files are of another form, or the tokenizer has ids without an embedding.
    """
    source = _source(context, number)
    size = len(source.model.get_input_embeddings().weight)  # type: ignore[arg-type]
    check_embeddings(context, str(source.folder), size)


def plan_round(context: "RunContext", step: "Round") -> dict[str, Any]:
    """Decide what the round removes, and write the checkpoint without it.

    Returns the PruningPlan as a dict, for plan.json; what is behind it is written to
    statistics.safetensors. A run that was killed goes on with the layer that it was at.
    """
    choices = _walk(context, step)
    config, measured = context.config, streamed.measured(choices)
    scores = neuron_scores(measured, SCORERS[config.score.scorer], config.score, config.prune)
    chosen = {number: each.ridge for number, each in enumerate(choices) if each.ridge is not None}
    if chosen:
        say(f"round {step.number}: {ridge.in_words(chosen)}")
    plan = kind_of(step).plan(step, scores)
    assert plan.kept_neurons == [each.kept_K.tolist() for each in choices]
    context.folder.round(step.number).statistics.write(scores.kept)
    return dataclasses.asdict(plan)


def stays_on_disk(context: "RunContext", step: "Round") -> bool:
    """Whether no process has the whole model that such a round leaves: it is not measured, and not
    trained, or as ZeRO-3 divides it over the ranks.
    """
    measures, names = context.tasks or context.inputs.checked_documents, context.recoveries(step)
    trainer, divides = context.config.trainer, distributed.world_size() > 1
    divides = divides and zero_stage(trainer.deepspeed) == 3 and registry.takes_divided(names)
    return applies(context, step) and not measures and (divides or not registry.trains(names))


def write(context: "RunContext", step: "Round") -> None:
    """Write the pruned checkpoint, unless it is there and whole."""
    if not context.folder.round(step.number).streamed.is_complete():
        _walk(context, step)
    context.release()


def divide(context: "RunContext", step: "Round") -> None:
    """Load the pruned checkpoint divided over the ranks; its training leaves it in ``trained``."""
    files, settings = context.folder.round(step.number), context.config.model
    context.release()
    config = loading.load_config(str(files.streamed.path))
    computed = precision.as_computed(settings, context.device, context.original)
    dtype = loading.computed_dtype(computed, context.device, config)
    model = divided.load(files.streamed.path, config, dtype, context.device)
    loading.set_attention_(model, settings, context.device)
    context.loaded = LoadedModel(
        model=model,
        family=families.find_family(model),
        leave=functools.partial(
            divided.write, model, files.streamed, files.trained, context.saved_dtype
        ),
    )


def prune(context: "RunContext", step: "Round") -> None:
    """Load the pruned checkpoint; if it was lost or damaged, it is made again."""
    write(context, step)
    load_folder(context, context.folder.round(step.number).streamed.path)


def _walk(context: "RunContext", step: "Round") -> list[streamed.Choice]:
    """Score, compensate and compact layer by layer, with no other model in memory."""
    context.release()
    config = context.config
    work = streamed.StreamedWork(
        scorer=SCORERS[config.score.scorer],
        tokens=context.data.calibration(step.number, config.score.calibration_tokens),
        batch_size=config.trainer.micro_batch,
        width=step.width,
        compensate=config.prune.compensate,
        ridge=None if config.score.ridge == "auto" else config.score.ridge,
        extra=prune_step.needed_statistics(context, step),
    )
    folder = context.folder.round(step.number).streamed.path
    source = _source(context, step.number - 1)
    return streamed.prune_layers(source, work, folder, context.saved_dtype)


def _source(context: "RunContext", number: int) -> LayersOnDisk:
    """The layers of round ``number``'s model, or of the original, computed as in memory."""
    settings = context.config.model
    assert settings.model is not None
    if number:
        folder: Path | None = context.folder.round(number).model().path
        config = loading.load_config(str(folder))
    else:
        folder = loading.weights_folder(settings.model, settings)
        config = loading.load_config(settings.model, settings)
    if folder is None:
        raise ValueError(
            f"--stream reads layers from a folder, and --model {settings.model} is on the hub;"
            f" download it (hf download {settings.model} --local-dir DIR) and give --model DIR"
        )
    computed = precision.as_computed(settings, context.device, context.original)
    dtype = loading.computed_dtype(computed, context.device, config)
    source = LayersOnDisk(folder, config, dtype, context.device)
    loading.set_attention_(source.model, settings, context.device)
    return source

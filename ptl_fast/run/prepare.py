"""From settings to a run that can begin: everything is checked, and nothing is written before it
fits.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ptl_fast.baselines.slicegpt  # noqa: F401  lets transformers load models that SliceGPT sliced
from ptl_fast.base import distributed
from ptl_fast.base.console import say
from ptl_fast.config.checking import flag
from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.model import families, loading
from ptl_fast.pruning import width_multiple
from ptl_fast.recovery import registry, trainer
from ptl_fast.recovery.distillation import teacher_cache
from ptl_fast.recovery.grpo.train import rollout_split
from ptl_fast.run import checks, inputs, quality_gate, rounds, sizes
from ptl_fast.run.context import LoadedModel, RunContext
from ptl_fast.run.folder import RunFolder
from ptl_fast.scoring import statistics

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config


def prepare(config: "Config") -> RunContext:
    """Check the settings, the model, the data and the folder; load the weights; then open the
    folder.

    Raises:
        ValueError: something does not fit; names the fix.
    """
    assert config.model.model is not None
    if config.model.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    identity, device = config.identity(), loading.resolve_device(config.model.device)
    distributed.join(device)  # before anything is said: once for all ranks
    checks.check_installation(config, device)
    if config.trainer.deepspeed is not None and device == "cpu" and "WORLD_SIZE" not in os.environ:
        say("--deepspeed has no use in one process on a CPU: recovery runs without it.")
    original = loading.load_config(config.model.model)
    checks.check_lengths(config, original)
    output = output_folder(config)
    chosen = None
    if config.prune.width_multiple == "auto":
        chosen = _choose_width_multiple(config, output, device, original)
        config = config.changed(width_multiple=chosen["multiple"])
    plan = _rounds(config, original)
    tasks = eval_tasks.parse_tasks(
        config.evaluation.eval_tasks, config.evaluation.allow_code_execution
    )
    if config.gate.gate is not None:
        labels = [task.label for task in tasks]
        plan.gate_on = quality_gate.parse_gate(config.gate.gate, labels)
    _check_batches(config)
    read, data = inputs.load(config, tasks, plan.schedule)
    folder = RunFolder(output, {"config": identity, "inputs": read.fingerprint})
    context = RunContext(
        config=config,
        device=device,
        original=original,
        folder=folder,
        rounds=plan,
        data=data,
        inputs=read,
        tasks=tasks,
    )
    _open_folder(context, chosen)
    return context


def load_weights(context: RunContext, number: int, extension: int = 0) -> None:
    """Load the original (0) or what a round, or an extension of it, left; check that the model
    computes finite numbers.
    """
    settings = context.config.model
    assert settings.model is not None
    source = settings.model
    if number:
        source = str(context.folder.round(number).model(extension).path)
    model = loading.load_model(source, settings, context.device)
    family = families.find_family(model)
    num_embeddings = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if max(int(tokens.input_ids.max()) for tokens in context.data.training) >= num_embeddings:
        raise ValueError(
            f"--model {source}: its tokenizer gives ids beyond the model's"
            f" {num_embeddings} embeddings"
        )
    context.loaded = LoadedModel(model=model, family=family)
    statistics.collect(model, family, context.data.training[0].first(1), 1, "check")


def output_folder(config: "Config") -> Path:
    """The run's folder: --output, or named after the model, and a run's result after the run."""
    assert config.model.model is not None
    path = Path(config.model.model)
    path = path.resolve() if path.is_dir() else path
    name = f"{path.parent.name}-final" if path.name == "final" else path.name
    output = Path(config.run.output or f"runs/{name}")
    for own, model in (("model", config.model.model), ("teacher", config.distill.teacher)):
        if model is None or not Path(model).is_dir():
            continue
        if Path(model).resolve().is_relative_to(output.resolve()):
            raise ValueError(
                f"{flag(own)} {model} lies in this run's own folder, {output}; give another"
                " --output"
            )
    return output


def _choose_width_multiple(
    config: "Config", output: Path, device: str, original: "PretrainedConfig"
) -> dict[str, Any]:
    """Decide what auto is, or take what the run decided before: a second measurement might say
    something else.
    """
    chosen = None if config.run.overwrite else RunFolder(output).width_multiple.read()
    if distributed.is_main() and chosen is None:
        name = config.model.dtype
        dtype = getattr(torch, "float32" if name == "auto" else name)
        chosen = width_multiple.choose(
            device, original.hidden_size, original.intermediate_size, dtype
        )
    chosen = distributed.agree(chosen)
    assert chosen is not None
    say(f"--width-multiple auto is {chosen['multiple']}: {chosen['reason']}")
    return chosen


def _rounds(config: "Config", original: "PretrainedConfig") -> rounds.Rounds:
    multiple = config.prune.width_multiple
    assert isinstance(multiple, int)
    return rounds.Rounds(
        rounds.make_schedule(config, original),
        original.intermediate_size,
        original.num_hidden_layers,
        multiple,
    )


def _check_batches(config: "Config") -> None:
    """Say now, and not after the first pruning, where a batch does not divide among the ranks."""
    trainer.batch_split(config.trainer)
    if any(each.on_problems for each in registry.find(config.recovery.all_recoveries)):
        rollout_split(config.grpo, config.trainer.micro_batch * config.data.sequence_length)


def _open_folder(context: RunContext, chosen: dict[str, Any] | None) -> None:
    """Check the folder and the disk, take over what a run before left in it, and open it."""
    config, folder, overwrite = context.config, context.folder, context.config.run.overwrite
    for name, (before, now) in folder.check(overwrite).items():
        say(
            f"{folder.path}: {flag(name)} was {before} and is {now} from here; the result is the"
            " same but for rounding."
        )
    folder.check_disk(_needed_bytes(context))
    num_finished = 0 if overwrite else folder.num_finished_rounds()
    if not overwrite:
        for content in distributed.agree(folder.decisions.read()) or []:
            context.follow(quality_gate.Decision(**content))
    schedule = context.rounds.schedule
    if num_finished < len(schedule):
        load_weights(context, num_finished)
    folder.open(overwrite)
    if chosen is not None:
        folder.width_multiple.write(chosen)
    if num_finished:
        say(f"{folder.path}: continuing after round {num_finished} of {len(schedule)}")
    context.records = [folder.round(number).record.read() for number in range(1, num_finished + 1)]
    folder.remove_old_weights(num_finished, config.run.keep_rounds)


def _needed_bytes(context: RunContext) -> int:
    """Disk space that the run needs, at most."""
    config = context.config
    # float32 weights of the kept rounds and of a round in the making; a checkpoint adds two Adam
    # moments, and so does each of two rounds with --keep-optimizer-state
    num_moments = 4 if config.recovery.keep_optimizer_state else 0
    # an extension begins with what recovery left
    num_models = config.run.keep_rounds + 1 + (context.rounds.gate_on is not None)
    size = sizes.predicted_size(context.original, None, config.data.sequence_length)
    weights = size["num_parameters"] * 4 * (num_models + 3 + num_moments)
    if not any(each.has_teacher for each in registry.find(config.recovery.all_recoveries)):
        return weights
    row_bytes = teacher_cache.row_bytes(
        config.data.sequence_length, config.distill.distill_top_k, context.original.vocab_size
    )
    parts = [len(tokens) for tokens in context.data.training]
    # with until-recovered, the last round may come to the sequences of all
    until_recovered = config.recovery.recovery_split == "until-recovered"
    return weights + row_bytes * (sum(parts) if until_recovered else max(parts, default=0))

"""Turn settings into a run that can start or resume: check everything, then open the folder.

Settings, model, data, disk space and the folder's content are checked, and the weights loaded,
before anything is written: a run that is refused leaves the folder as it was.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ptl_fast.baselines.flap
import ptl_fast.baselines.slicegpt  # noqa: F401  both let transformers load their models
from ptl_fast.base import distributed, heartbeat, memory
from ptl_fast.base.console import reason, say
from ptl_fast.config.checking import flag
from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.model import loading, parts, precision, stored_weights
from ptl_fast.model.widths import expert_limits, ffn_width
from ptl_fast.pruning import width_multiple
from ptl_fast.recovery import registry, rollouts, trainer
from ptl_fast.recovery.distillation import teacher_cache
from ptl_fast.run import (
    checks,
    goals,
    inputs,
    layer_choice,
    layers_left,
    lengths,
    model_memory,
    quality_gate,
    rank_agreement,
    recover_step,
    repair,
    rounds,
    shared_folder,
    size_folders,
    sizes,
    stream_step,
    trace_step,
)
from ptl_fast.run.context import RunContext
from ptl_fast.run.folder import RunFolder
from ptl_fast.run.weights import load_later, load_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config


def prepare(config: "Config") -> RunContext:
    """Check the settings, the model, the data and the folder, and load the newest weights.

    Writes state.json, which makes the folder a run; with --overwrite, deletes the run in it first.
    Joins the process group if a launcher started several ranks.

    Raises:
        ValueError: something does not fit; names the fix.
    """
    assert config.model.model is not None
    # DeepSpeed otherwise takes a GPU that it finds
    if config.model.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    device = loading.resolve_device(config.model.device)
    # before any message: only the main rank prints, and ranks are not known earlier
    distributed.join(device)
    heartbeat.start(distributed.rank(), distributed.world_size())
    memory.set_limit(config.model.memory_bytes)
    checks.check_installation(config, device)
    if config.trainer.deepspeed is not None and device == "cpu" and "WORLD_SIZE" not in os.environ:
        say("--deepspeed has no use in one process on a CPU: recovery runs without it.")
    name = config.model.model
    original = loading.load_config(name, config.model)
    checks.check_support(config, original)
    for note in (*stored_weights.notes(name, config.model), *parts.notes(original)):
        say(note)
    config = lengths.fitted(config, original)
    output = output_folder(config)
    shared_folder.check(output)
    config = _as_begun(config, output)
    chosen = None
    if config.prune.width_multiple == "auto":
        chosen = _choose_width_multiple(config, output, device, original)
    config = _solved(config, original, chosen)
    # the identity keeps "auto": the chosen multiple must not make a resumed run another one
    identity = config.identity()
    if chosen is not None:
        config = config.changed(width_multiple=chosen["multiple"])
    layer_choice.check(config.prune, original)
    checks.check_stream(config, original)
    config = distributed.agree(model_memory.with_stream(config, original, device))
    plan = _rounds(config, original)
    checks.check_expert_rows(config, original, plan.schedule)
    tasks = eval_tasks.parse_tasks(config.evaluation.tasks, config.evaluation.allow_code_execution)
    if config.gate.gate is not None:
        labels = [task.label for task in tasks]
        plan.gate_on = quality_gate.parse_gate(config.gate.gate, labels)
    _check_batches(config)
    read, data = inputs.load(config, tasks, plan.schedule, original.get_text_config().vocab_size)
    lengths.check_answers(read.loaded_tasks, original)
    # a folder continues only a run with the same settings and the same inputs
    state = {"config": identity, "inputs": read.fingerprint}
    rank_agreement.check({**state, "plan": [asdict(step) for step in plan.schedule]})
    folder = RunFolder(output, state)
    context = RunContext(
        config=config,
        device=device,
        original=original,
        saved_dtype=precision.saved_dtype(
            config.model, device, loading.weights_folder(name, config.model), original
        ),
        folder=folder,
        rounds=plan,
        data=data,
        inputs=read,
        tasks=tasks,
    )
    _open_folder(context, chosen)
    return context


def output_folder(config: "Config") -> Path:
    """The run's folder: --output, or runs/ and the model's name; NAME-final for a run's result.

    Raises:
        ValueError: the model or the teacher lies in that folder, where --overwrite would delete it.
    """
    assert config.model.model is not None
    path = Path(config.model.model)
    # resolved, so that "." and a bare "final" have a name and a parent
    path = path.resolve() if path.is_dir() else path
    name = f"{path.parent.name}-final" if path.name == "final" else path.name
    output = Path(config.run.output or f"runs/{name}")
    try:
        resolved = output.resolve()
    except RuntimeError as error:  # of Python before 3.13
        raise ValueError(f"--output {output}: {reason(error)}; give another --output") from error
    for own, model in (("model", config.model.model), ("teacher", config.distill.teacher)):
        if model is None or not Path(model).is_dir():
            continue
        if Path(model).resolve().is_relative_to(resolved):
            raise ValueError(
                f"{flag(own)} {model} lies in this run's own folder, {output}; give another"
                " --output"
            )
    return output


def _as_begun(config: "Config", output: Path) -> "Config":
    """The settings, with the former defaults of a run that goes on from an older version."""
    saved = {} if config.run.overwrite else distributed.agree(RunFolder(output).settings())
    if not saved:
        return config
    config, kept = config.as_begun(saved)
    if kept:
        flags = ", ".join(f"{flag(name)} {value}" for name, value in kept.items())
        say(f"{output} goes on as it began: {flags}.")
    return config


def _solved(
    config: "Config", original: "PretrainedConfig", chosen: dict[str, Any] | None
) -> "Config":
    """The settings with the sizes that the goals are solved into, which are told in a table."""
    multiple = config.prune.width_multiple if chosen is None else chosen["multiple"]
    assert isinstance(multiple, int)
    config, table = goals.solved(config, original, multiple)
    if table is not None:
        checks.check_support(config, original, goals_are_solved=True)
        say(f"{table}\n")
    return config


def _choose_width_multiple(
    config: "Config", output: Path, device: str, original: "PretrainedConfig"
) -> dict[str, Any]:
    """What --width-multiple auto is here: {"multiple": neurons, "reason": text, ...}.

    Measured on the main rank, which all ranks follow. Nothing is written yet.
    """
    # a resumed run takes the value on disk: another measurement, or machine, might give another one
    chosen = None if config.run.overwrite else RunFolder(output).width_multiple.read()
    if distributed.is_main() and chosen is None:
        name = config.model.dtype
        dtype = getattr(torch, "float32" if name == "auto" else name)
        chosen = width_multiple.choose(device, original.hidden_size, ffn_width(original), dtype)
    chosen = distributed.agree(chosen)
    assert chosen is not None
    say(f"--width-multiple auto is {chosen['multiple']}: {chosen['reason']}")
    return chosen


def _rounds(config: "Config", original: "PretrainedConfig") -> rounds.Rounds:
    """The schedule that the settings ask for, before any decision of the quality gate."""
    multiple = config.prune.width_multiple
    assert isinstance(multiple, int)
    return rounds.Rounds(
        rounds.make_schedule(config, original),
        ffn_width(original),
        original.num_hidden_layers,
        multiple,
        experts=expert_limits(original),
    )


def _check_batches(config: "Config") -> None:
    """Raise ValueError if a batch does not divide among the ranks: now, not after pruning."""
    trainer.batch_split(config.trainer)
    tokens_per_pass = config.trainer.micro_batch * config.data.sequence_length
    for each in registry.rollouts_of(config.recovery.all_recoveries, config.grpo, config.opd):
        rollouts.split(each, tokens_per_pass)


def _open_folder(context: RunContext, chosen: dict[str, Any] | None) -> None:
    """Check the folder and the disk, restore the run that the folder holds, and open it.

    Restores the quality gate's decisions (the schedule and the data follow from them), the weights
    after the newest finished round, and the records.
    """
    config, folder, overwrite = context.config, context.folder, context.config.run.overwrite
    for name, (before, now) in folder.check(overwrite).items():
        say(
            f"{folder.path}: {flag(name)} was {before} and is {now} from here; the result is the"
            " same but for rounding."
        )
    folder.check_disk(_needed_bytes(context))
    num_finished, decisions = 0, []
    if not overwrite:
        trace_step.restore(context)
        # replayed in order, those of unfinished rounds too: they may have been undone or extended
        num_finished = repair.usable_rounds(folder, config.recovery.keep_optimizer_state)
        written = distributed.agree(folder.decisions.read()) or []
        decisions = repair.decisions_until(written, folder, num_finished)
        for content in decisions:
            context.follow(quality_gate.Decision(**content))
    schedule = context.rounds.schedule
    # before the folder is opened: a model that does not fit must not cost the run in it
    if num_finished < len(schedule):
        recover_step.check_ranks(context, schedule[num_finished])
        recover_step.tell_damaged_checkpoints(context, schedule[num_finished])
        if config.model.stream:
            stream_step.check(context, num_finished)
            load_later(context, num_finished)
        else:
            load_weights(context, num_finished)
    folder.open(overwrite)
    if not overwrite:
        if decisions != written:
            folder.decisions.write(decisions)
        repair.forget_rounds(folder, num_finished)
    if chosen is not None:
        folder.width_multiple.write(chosen)
    if num_finished:
        say(f"{folder.path}: continuing after round {num_finished} of {len(schedule)}")
    context.records = repair.read_records(context, num_finished)
    # a run killed after a record was written may not have come to it
    folder.remove_old_weights(num_finished, config.run.keep_rounds)


def _needed_bytes(context: RunContext) -> int:
    """Upper bound of the disk space that the run needs, in bytes."""
    config = context.config
    # in units of the original's fp32 weights: the kept rounds, and the round that is being made; a
    # checkpoint is 3 (weights and two Adam moments), and --keep-optimizer-state keeps the moments
    # of two rounds
    num_moments = 4 if config.recovery.keep_optimizer_state else 0
    # an extension of recovery needs the model it starts from until its own is saved
    num_models = config.run.keep_rounds + 1 + (context.rounds.gate_on is not None)
    num_models += 1  # final/
    # the shards of pruning, and those of a training that was divided
    num_models += 2 * config.model.stream
    size = sizes.predicted_size(context.original, None, config.data.sequence_length)
    weights = size["num_parameters"] * 4 * (num_models + 3 + num_moments)
    planned = [
        sizes.predicted_size(
            context.original,
            step,
            config.data.sequence_length,
            layers_left.planned(config.prune, context.original, step),
        )["num_parameters"]
        for step in context.rounds.schedule
    ]
    weights += 4 * size_folders.missing_weights(context, planned)
    if not any(each.teacher_on_disk for each in registry.find(config.recovery.all_recoveries)):
        return weights
    row_bytes = teacher_cache.row_bytes(
        config.data.sequence_length, config.distill.distill_top_k, context.original.vocab_size
    )
    parts = [len(tokens) for tokens in context.data.training]
    # with until-recovered, unread sequences move on, so the last round may have those of all rounds
    until_recovered = config.recovery.recovery_split == "until-recovered"
    return weights + row_bytes * (sum(parts) if until_recovered else max(parts, default=0))

"""Dry run: estimate the GPU memory and hours that each round of a run will need.

Parameters and FLOPs are exact (flops.py); memory and hours are estimates, printed with their
assumptions. Bytes are for one GPU. N is the number of parameters.
"""

import itertools
import types
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import columns, quiet_libraries
from ptl_fast.config.presets import shipped_config
from ptl_fast.model import flops
from ptl_fast.recovery import registry
from ptl_fast.run import (
    data_amount,
    goals,
    layer_choice,
    layers_left,
    lengths,
    pruning_memory,
    size_folders,
    sizes,
    stage_costs,
    tables,
    text,
    trace_report,
)
from ptl_fast.run.checks import check_expert_rows, check_stream, check_support
from ptl_fast.run.recovery_costs import estimates, hours, training_bytes, training_hours
from ptl_fast.run.rounds import kind_of, make_schedule
from ptl_fast.run.this_machine import chosen, named

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.pruning.schedule import Round

# Tokens of one benchmark prompt, by model type. Inferred: at these lengths our FLOPs count without
# the language-model head equals what arXiv 2602.04919 prints for the original model
# (docs/paper.md). The paper has MBPP for Llama3-8B only.
PROMPT_TOKENS = {
    "llama": {"GSM8K": 637, "Minerva Math": 596, "MATH-500": 596, "MBPP": 199},
    "gemma2": {"GSM8K": 672, "Minerva Math": 615, "MATH-500": 609, "MBPP": 199},
    "qwen2": {"GSM8K": 676, "Minerva Math": 617, "MATH-500": 617, "MBPP": 199},
}

# Tokens in the KV cache of the serving estimate.
SERVED_CONTEXT = 4096
GIB = 2**30


def dry_run(config: "Config") -> str:
    """Return a table of the rounds' sizes, memory and hours, and the assumptions behind it.

    Needs the model's config only: no weights, no data, and for a preset no network.

    Raises:
        ValueError: the schedule does not fit the model.
    """
    name = config.model.model
    assert name is not None
    dense: Any = shipped_config(name)
    notes: list[str] = []
    if dense is None:
        dense, notes = _load_config(name, config)
    config = lengths.fitted(config, dense)
    # "auto" depends on the run's device, and a dry run is always about GPUs
    if config.prune.width_multiple == "auto":
        from ptl_fast.pruning import width_multiple

        config = config.changed(width_multiple=width_multiple.TENSOR_CORE_MULTIPLE)
    assert isinstance(config.prune.width_multiple, int)
    config, solution = goals.solved(config, dense, config.prune.width_multiple)
    if solution is not None:
        notes.append(solution)
        if not isinstance(dense, types.SimpleNamespace):
            check_support(config, dense, goals_are_solved=True)
    # the shipped configs' families have no layers that could not go
    if not isinstance(dense, types.SimpleNamespace):
        layer_choice.check(config.prune, dense)
    check_stream(config, dense)
    if config.model.stream:
        notes.append(pruning_memory.line(dense, config))
    if config.prune.slice_hidden is not None and isinstance(dense, types.SimpleNamespace):
        from transformers import AutoConfig  # slicing needs transformers' own class

        dense = AutoConfig.for_model(**vars(dense))
    schedule = make_schedule(config, dense)
    check_expert_rows(config, dense, schedule)
    guess = data_amount.guess(config)
    planned = config if guess is None else config.changed(recovery_tokens=guess)
    rows = [
        {"name": "dense", **predict(dense, dense, config, config.recovery.recoveries, 0)},
        *predict_rounds(dense, planned, schedule),
    ]
    floor = ""
    if config.prune.threshold is not None:
        floor = (
            "These widths are the lowest that --threshold may reach: a round's scores decide how"
            " many neurons go.\n\n"
        )
    notes += layer_choice.engine_notes(config.prune, dense)
    notes += layers_left.note(config.prune, dense, schedule)
    said = "".join(f"{note}\n\n" for note in notes)
    told = f"{said}{tables.schedule_table(rows, columns())}\n\n{floor}{assumptions(config, rows)}"
    told += f"\n{size_folders.prediction(config, rows, goals.item_bytes(config, dense))}"
    _, device = chosen(config.run.dry_run_gpus)
    told += f"\n{stage_costs.line(stage_costs.of_run(costed(dense, planned, schedule)), device)}"
    grams = pruning_memory.grams_line(dense, config, device)
    told += f"\n{grams}" if grams else ""
    told += "" if guess is None else f"\n{data_amount.line(guess)}"
    if config.traces.traces:
        num_gpus, gpu = chosen(config.run.dry_run_gpus)
        speed = num_gpus * gpu.bandwidth_gbs * 1e9 * gpu.utilisation
        told += f"\n{trace_report.prediction(config, schedule, dense, speed)}"
    return told


def _load_config(name: str, config: "Config") -> tuple[Any, list[str]]:
    """The model's config, checked as a run checks it, and what is done to its weights first."""
    # imported here, as a preset's dry run should start without waiting for transformers
    from ptl_fast.model import loading, parts, stored_weights

    if not config.run.debug:
        quiet_libraries()
    original = loading.load_config(name, config.model)
    check_support(config, original)
    return original, [*stored_weights.notes(name, config.model), *parts.notes(original)]


def predict(
    model: "PretrainedConfig",
    original: "PretrainedConfig",
    config: "Config",
    recoveries: list[str],
    num_tokens: int | None,
) -> dict[str, Any]:
    """Estimate what one model needs on the GPUs of --dry-run-gpus.

    Args:
        model: config of the model at this stage.
        original: config of the original model, the teacher of distillation.
        config: the run's.
        recoveries: names of the recoveries that follow this stage.
        num_tokens: text tokens for them, in equal parts for those that train on text; None if the
            amount is not known.

    Returns:
        The keys of ``flops.model_size``; prompt_tokens and prompt_flops, {benchmark: number};
        serving_bytes and training_bytes per GPU; recovery_tokens and recovery_hours, None if not
        known.
    """
    num_gpus, gpu = chosen(config.run.dry_run_gpus)
    prompts = PROMPT_TOKENS.get(model.model_type, PROMPT_TOKENS["llama"])
    parts = estimates(model, original, config, recoveries, num_tokens)
    known = all(part.num_tokens is not None for part in parts)
    return {
        # FLOPs per token at the mean number of preceding tokens
        **flops.model_size(model, config.data.sequence_length // 2),
        "prompt_tokens": prompts,
        "prompt_flops": {
            name: flops.flops_per_sample(model, length, lm_head=False)
            for name, length in prompts.items()
        },
        "serving_bytes": serving_bytes(model),
        "training_bytes": training_bytes(model, original, config, num_gpus),
        "recovery_tokens": round(sum(part.num_tokens or 0 for part in parts)) if known else None,
        "recovery_hours": training_hours(parts, model, config, num_gpus, gpu),
    }


def predict_rounds(
    original: "PretrainedConfig", config: "Config", schedule: "list[Round]"
) -> list[dict[str, Any]]:
    """Return ``predict`` for each round's model, with the round's name under ``name``."""
    return [
        {
            "name": f"{step.number} {step.kind}",
            **predict(each.after, original, config, each.names, each.num_tokens),
        }
        for step, each in zip(schedule, costed(original, config, schedule), strict=True)
    ]


def costed(
    original: "PretrainedConfig", config: "Config", schedule: "list[Round]"
) -> list[stage_costs.Round]:
    """What the costs of each round follow from."""
    total, before, found = config.recovery.recovery_tokens, original, []
    for step in schedule:
        kept = layers_left.planned(config.prune, original, step)
        after = sizes.config_after(original, step, kept)
        own = config.recovery
        one = stage_costs.Round(
            before=before,
            after=after,
            original=original,
            config=config,
            names=own.final_recoveries if kind_of(step).is_final else own.recoveries,
            num_tokens=None if total is None else round(step.recovery_share * total),
        )
        found.append(one)
        before = after
    return found


def assumptions(config: "Config", rows: list[dict[str, Any]]) -> str:
    """Return the lines below the table: total hours, assumptions, and a warning if memory is short.

    ``rows`` are the table's: the dense model, then each round.
    """
    _, gpu = chosen(config.run.dry_run_gpus)
    recoveries = registry.find(config.recovery.all_recoveries)
    rollouts = registry.rollouts_of(config.recovery.all_recoveries, config.grpo, config.opd)
    on_text = any(each.on_text for each in recoveries)
    batch = f"{config.trainer.micro_batch} x {config.data.sequence_length}"
    trains = registry.trains(config.recovery.all_recoveries)
    recompute = "with" if config.trainer.gradient_checkpointing else "without"
    lines = [
        "Under each benchmark: FLOPs of one prompt of so many tokens, without the language-model"
        " head. The lengths are inferred"
        " from the FLOPs of arXiv 2602.04919, not measured (docs/paper.md).",
        f"Serving: bf16 weights and the KV cache of one sequence of {SERVED_CONTEXT} tokens."
        + (
            f" Training: one device of {named(config.run.dry_run_gpus)},"
            f" {config.trainer.deepspeed or 'no DeepSpeed'}, {batch} tokens, {recompute} gradient"
            " checkpointing; an estimate."
            if trains
            else ""
        ),
        text.prediction(config),
    ]
    if config.score.weighs_tokens:
        lines.append(_weighing(config, rows))
    if config.prune.keep < 1 and config.prune.fits_in_order:
        lines.append(
            "Layers are compensated in order (--compensate-inputs pruned): three more passes over"
            " --calibration-tokens in each round, with their hidden states in memory."
        )
    if config.prune.num_dropped_layers and config.prune.compensate_layers:
        lines.append(
            "What dropped layers did is folded into the FFN before them (--compensate-layers):"
            " another pass over --calibration-tokens in each round that drops layers."
        )
    if not trains:
        lines.append("--recovery none: nothing is trained; scoring and evaluation take the time.")
    elif all(row["recovery_hours"] is not None for row in rows[1:]):
        total = sum(row["recovery_hours"] for row in rows[1:])
        lines.append(
            (
                f"Recovery: {tables.show_hours(total)} hours on {named(config.run.dry_run_gpus)},"
                f" assuming {gpu.utilisation:.0%} of {gpu.tflops:.3g} TFLOP/s each"
            )
            + (
                ", generating the rollouts not counted, and each as long as it may be."
                if rollouts
                else "."
            )
        )
        if any(each.has_teacher for each in recoveries):
            lines.append(
                "The teacher is taken to be the original, and to run once over every recovery"
                " token."
            )
    else:
        needs_tokens = config.recovery.recovery_tokens is None and on_text
        flags = " and ".join(
            ["--recovery-tokens"] * needs_tokens
            + [f"--{each.method}-steps" for each in rollouts if each.steps is None]
        )
        lines.append(f"Recovery hours need {flags}: how much the data has is not known here.")
    if any(each.has_teacher and each.on_problems for each in recoveries):
        lines.append(
            "With opd the teacher stays in memory beside the model: training's memory has both."
        )
    most = max(row["training_bytes"] for row in rows[1:]) / GIB
    if most > gpu.memory_gib and trains:
        lines.append(
            f"Recovery needs {most:.0f} GiB on a GPU or machine that has {gpu.memory_gib}: use more"
            " GPUs, or"
            " --deepspeed."
        )
    return "\n".join(lines)


def _weighing(config: "Config", rows: list[dict[str, Any]]) -> str:
    """The line about what --token-weights costs, in rounds that remove neurons."""
    num_gpus, gpu = chosen(config.run.dry_run_gpus)
    # three more forward passes of the model before the round: its own prediction, the probe's, and
    # the second pass for statistics
    work = sum(
        3 * config.score.calibration_tokens * before["flops_per_token"]
        for before, after in itertools.pairwise(rows)
        if after["width"] < before["width"]
    )
    return (
        f"--token-weights {config.score.token_weights}: three more forward passes over"
        " --calibration-tokens in each round that removes neurons,"
        f" {hours(work, num_gpus, gpu):.2g} hours in all; Gram matrices are made a second time."
    )


def serving_bytes(model: "PretrainedConfig") -> int:
    """bf16 weights and the KV cache of one sequence of SERVED_CONTEXT tokens."""
    key_value = flops.attention_widths(model)[1]
    # 2 bytes a weight; 2 tensors (keys and values) of 2 bytes an element
    return (
        2 * flops.count_weights(model).num_parameters
        + 4 * key_value * model.num_hidden_layers * SERVED_CONTEXT
    )

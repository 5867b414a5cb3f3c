"""What a run will need on named GPUs: memory and hours. flops.py counts exactly; these are
estimates, which say what they assume.

Bytes are for one GPU, N is the number of parameters, T the tokens in one forward pass of one rank.
"""

import dataclasses
import json
import re
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import quiet_libraries
from ptl_fast.config.command_line import shipped_config
from ptl_fast.config.config import NOT_ON_TEXT, check_deepspeed, deepspeed_file
from ptl_fast.model import flops
from ptl_fast.run.checks import check_lengths
from ptl_fast.run.rounds import make_schedule

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.pruning.schedule import Round

# Tokens of one benchmark prompt, by model type: the length at which our count without the
# language-model head gives the FLOPs that arXiv 2602.04919 prints for the original model
# (docs/paper.md). The paper has MBPP for Llama3-8B alone.
PROMPT_TOKENS = {
    "llama": {"GSM8K": 637, "Minerva Math": 596, "MATH-500": 596, "MBPP": 199},
    "gemma2": {"GSM8K": 672, "Minerva Math": 615, "MATH-500": 609, "MBPP": 199},
    "qwen2": {"GSM8K": 676, "Minerva Math": 617, "MATH-500": 617, "MBPP": 199},
}
# Forward passes that one training token costs: 1 forward and 2 for the backward pass. Recomputing
# for gradient checkpointing comes on top; for distillation the teacher's forward pass; for GRPO the
# log-probabilities under a reference, and under the policy where another program sampled.
FORWARD_PASSES = {"none": 0, "cpt": 3, "distill": 3, "grpo": 3}
UTILISATION = 0.4
SERVED_CONTEXT = 4096
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peak dense bf16 TFLOP/s, from NVIDIA's data sheets (SXM), and memory."""

    tflops: float
    memory_gib: int


GPUS = {
    "A100-40GB": Gpu(tflops=312, memory_gib=40),
    "A100-80GB": Gpu(tflops=312, memory_gib=80),
    "H100-80GB": Gpu(tflops=989, memory_gib=80),
    "H200": Gpu(tflops=989, memory_gib=139),
}


def dry_run(config: "Config") -> str:
    """What each round would do, as a table, from the model's config alone: no weights, no data, and
    for a preset no network.

    Raises:
        ValueError: the schedule does not fit the model, or the estimate does not know a setting.
    """
    from ptl_fast.run import report

    assert config.model is not None
    dense: Any = shipped_config(config.model) or _load_config(config)
    check_lengths(config, dense)
    if config.slice_hidden is not None and isinstance(
        dense, types.SimpleNamespace
    ):  # slicing needs transformers' own class
        from transformers import AutoConfig

        dense = AutoConfig.for_model(**vars(dense))
    if config.width_multiple == "auto":
        from ptl_fast.pruning import width_multiple

        config = dataclasses.replace(config, width_multiple=width_multiple.TENSOR_CORE_MULTIPLE)
    rows = [
        {"name": "dense", **predict(dense, config, 0)},
        *predict_rounds(dense, config, make_schedule(config, dense)),
    ]
    floor = (
        "These widths are the lowest that --threshold may reach: a round's scores decide how"
        " many neurons go.\n\n"
    )
    return f"{report.schedule_table(rows)}\n\n{floor if config.threshold is not None else ''}{assumptions(config, rows)}"


def _load_config(config: "Config") -> Any:
    from ptl_fast.model import loading

    if not config.debug:
        quiet_libraries()
    assert config.model is not None
    return loading.load_config(config.model)


def parse_gpus(text: str) -> tuple[int, Gpu]:
    """Read COUNTxNAME, such as 4xA100-80GB.

    Raises:
        ValueError: it has another form, or the GPU is unknown.
    """
    match = re.fullmatch(r"([1-9]\d*)x(.+)", text)
    if match is None or match[2] not in GPUS:
        raise ValueError(
            f"--dry-run-gpus {text} is not COUNTxNAME, such as 4xA100-80GB, with NAME one of"
            f" {', '.join(GPUS)}"
        )
    return int(match[1]), GPUS[match[2]]


def predict(
    config: "PretrainedConfig",
    settings: "Config",
    num_tokens: int | None,
    recoveries: list[str] | None = None,
    original: "PretrainedConfig | None" = None,
) -> dict[str, Any]:
    """What a model of this config needs on the GPUs of ``settings``.

    ``num_tokens`` of text are for the ``recoveries`` (default: a round's) that train on it, in
    equal parts (None: not known). ``original`` is what distillation takes for the teacher.

    Returns ``flops.model_size`` with prompt_tokens and prompt_flops ({benchmark: number}),
    serving_bytes, training_bytes, recovery_tokens and recovery_hours.
    """
    num_gpus, gpu = parse_gpus(settings.dry_run_gpus)
    prompts = PROMPT_TOKENS.get(config.model_type, PROMPT_TOKENS["llama"])
    tokens = recovery_tokens(
        settings, num_tokens, settings.recoveries if recoveries is None else recoveries
    )
    work = {name: training_flops_per_token(config, settings, name) for name in tokens}
    if "distill" in work:
        work["distill"] += (
            flops.flops_per_sample(original or config, settings.sequence_length, causal=True)
            / settings.sequence_length
        )
    counts = [count for count in tokens.values() if count is not None]
    known = len(counts) == len(tokens)
    return {
        **flops.model_size(config, settings.sequence_length // 2),
        "prompt_tokens": prompts,
        "prompt_flops": {
            name: flops.flops_per_sample(config, length, lm_head=False)
            for name, length in prompts.items()
        },
        "serving_bytes": serving_bytes(config),
        "training_bytes": training_bytes(config, settings, num_gpus),
        "recovery_tokens": round(sum(counts)) if known else None,
        "recovery_hours": hours(
            sum((count or 0) * work[name] for name, count in tokens.items()), num_gpus, gpu
        )
        if known
        else None,
    }


def predict_rounds(
    original: "PretrainedConfig", settings: "Config", schedule: "list[Round]"
) -> list[dict[str, Any]]:
    """What each round's model needs, as ``predict`` returns it, and the round's name."""
    rows = []
    for step in schedule:
        num_tokens = (
            None
            if settings.recovery_tokens is None
            else round(step.recovery_share * settings.recovery_tokens)
        )
        smaller = flops.resized(original, step.width, step.num_layers, step.hidden_size)
        names = settings.final_recoveries if step.kind == "final" else settings.recoveries
        rows.append(
            {
                "name": f"{step.number} {step.kind}",
                **predict(smaller, settings, num_tokens, names, original),
            }
        )
    return rows


def recovery_tokens(
    settings: "Config", num_tokens: int | None, recoveries: list[str]
) -> dict[str, float | None]:
    """Tokens that each recovery of a round trains on, or None where that depends on the data.

    For grpo these are the tokens of responses that are all as long as they may be. Prompts, most of
    them far shorter than they may be, are not counted.
    """
    num_on_text = sum(name not in NOT_ON_TEXT for name in recoveries)
    tokens: dict[str, float | None] = {}
    for name in recoveries:
        if name == "grpo" and settings.grpo_steps is not None:
            tokens[name] = (
                settings.grpo_steps
                * settings.grpo_prompts
                * settings.grpo_rollouts
                * settings.grpo_response_tokens
            )
        elif name == "none":
            tokens[name] = 0
        else:
            tokens[name] = (
                None if num_tokens is None or name == "grpo" else num_tokens / num_on_text
            )
    return tokens


def assumptions(settings: "Config", rows: list[dict[str, Any]]) -> str:
    """What the predictions of a dry run (dense, then each round) add up to, and what they rest on."""
    _, gpu = parse_gpus(settings.dry_run_gpus)
    batch = f"{settings.micro_batch} x {settings.sequence_length}"
    recompute = "with" if settings.gradient_checkpointing else "without"
    lines = [
        "Under each benchmark: FLOPs of one prompt of so many tokens, without the language-model"
        " head. The lengths are inferred"
        " from the FLOPs of arXiv 2602.04919, not measured (docs/paper.md).",
        f"Serving: bf16 weights and the KV cache of one sequence of {SERVED_CONTEXT} tokens."
        " Training: each of"
        f" {settings.dry_run_gpus}, {settings.deepspeed or 'no DeepSpeed'}, {batch} tokens,"
        f" {recompute} gradient checkpointing;"
        " an estimate.",
    ]
    if all(row["recovery_hours"] is not None for row in rows[1:]):
        total = sum(row["recovery_hours"] for row in rows[1:])
        lines.append(
            (
                f"Recovery: {total:.1f} hours on {settings.dry_run_gpus}, assuming"
                f" {UTILISATION:.0%}"
                f" of {gpu.tflops:g} TFLOP/s each"
            )
            + (
                ", generating the rollouts not counted, and each as long as it may be."
                if settings.uses_grpo
                else "."
            )
        )
        if "distill" in [*settings.recoveries, *settings.final_recoveries]:
            lines.append(
                "The teacher is taken to be the original, and to run once over every recovery"
                " token."
            )
    else:
        needs_tokens, needs_steps = (
            settings.recovery_tokens is None and settings.trains_on_text,
            settings.grpo_steps is None,
        )
        flags = " and ".join(
            ["--recovery-tokens"] * needs_tokens
            + ["--grpo-steps"] * (needs_steps and settings.uses_grpo)
        )
        lines.append(f"Recovery hours need {flags}: how much the data has is not known here.")
    most = max(row["training_bytes"] for row in rows[1:]) / GIB
    if most > gpu.memory_gib:
        lines.append(
            f"Recovery needs {most:.0f} GiB on a GPU that has {gpu.memory_gib}: use more GPUs, or"
            " --deepspeed."
        )
    return "\n".join(lines)


def training_bytes(config: "PretrainedConfig", settings: "Config", num_gpus: int) -> int:
    """Peak memory of recovery: weights, gradients and Adam's state as DeepSpeed's stage divides
    them, and activations.

    The reference of --grpo-kl is a second copy of the weights. vLLM's engine is not in it.
    """
    num_parameters = flops.count_weights(config).num_parameters
    has_reference = settings.grpo_kl > 0 and settings.uses_grpo
    reference = (4 if settings.dtype == "float32" else 2) * num_parameters * has_reference
    return (
        _state_bytes(num_parameters, settings, num_gpus)
        + reference
        + _activation_bytes(config, settings)
    )


def serving_bytes(config: "PretrainedConfig") -> int:
    """bf16 weights and the KV cache of one sequence of SERVED_CONTEXT tokens."""
    key_value = flops.attention_widths(config)[1]
    return (
        2 * flops.count_weights(config).num_parameters
        + 4 * key_value * config.num_hidden_layers * SERVED_CONTEXT
    )


def training_flops_per_token(
    config: "PretrainedConfig", settings: "Config", recovery: str
) -> float:
    """FLOPs that a recovery executes for one token of a full sequence. With gradient checkpointing
    the decoder runs forward twice.

    Generating the rollouts of GRPO is not in it: that is bound by memory traffic, not by FLOPs.

    Raises:
        ValueError: no estimate is known for the recovery.
    """
    if recovery not in FORWARD_PASSES:
        raise ValueError(
            f"unknown recovery {recovery}; the dry run knows {', '.join(FORWARD_PASSES)}"
        )
    passes, length = FORWARD_PASSES[recovery], settings.sequence_length
    if recovery == "grpo":
        passes += (settings.grpo_kl > 0) + (settings.rollouts == "vllm")
        length = settings.grpo_prompt_tokens + settings.grpo_response_tokens
    again = settings.gradient_checkpointing and passes > 0
    forward = flops.flops_per_sample(config, length, causal=True)
    decoder = flops.flops_per_sample(config, length, causal=True, lm_head=False)
    return (passes * forward + again * decoder) / length


def hours(num_flops: float, num_gpus: int, gpu: Gpu) -> float:
    """Time for this work at UTILISATION of the peak."""
    return num_flops / (num_gpus * gpu.tflops * 1e12 * UTILISATION) / 3600


def _state_bytes(num_parameters: int, settings: "Config", num_gpus: int) -> int:
    """Table 1 of ZeRO (arXiv 1910.02054): half-precision weights and gradients, and 12 N for
    float32 weights and two moments.

    Without DeepSpeed, or in float32, weights and gradients are float32 and need no second copy: 4 N
    + 4 N + 8 N.
    """
    if settings.deepspeed is None:
        return 16 * num_parameters
    check_deepspeed(settings.deepspeed)
    zero = json.loads(deepspeed_file(settings.deepspeed).read_text()).get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else zero
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ValueError(
            f"--deepspeed {settings.deepspeed}: its ZeRO stage is {stage}; for --dry-run, write 0,"
            " 1, 2 or 3 there"
        )
    weights, gradients, optimizer = (4, 4, 8) if settings.dtype == "float32" else (2, 2, 12)
    whole = {0: weights + gradients + optimizer, 1: weights + gradients, 2: weights, 3: 0}[stage]
    divided = weights + gradients + optimizer - whole
    return round(num_parameters * (whole + divided / num_gpus))


def _activation_bytes(config: "PretrainedConfig", settings: "Config") -> int:
    """Half-precision inputs of every operation of a decoder layer, with attention that stores no
    square, and the logits.

    A layer keeps 6 tensors of the hidden width, 2 of the queries' and of the keys', and 4 of the
    FFN's. With gradient checkpointing all layers but the one being recomputed keep only their
    input. Logits: half precision, a float32 copy and its gradient."""
    tokens = settings.micro_batch * settings.sequence_length
    query, key_value = flops.attention_widths(config)
    layer = 2 * (6 * config.hidden_size + 2 * query + 2 * key_value + 4 * config.intermediate_size)
    layers = config.num_hidden_layers * layer
    if settings.gradient_checkpointing:
        layers = config.num_hidden_layers * 2 * config.hidden_size + layer
    return tokens * (layers + 10 * config.vocab_size)

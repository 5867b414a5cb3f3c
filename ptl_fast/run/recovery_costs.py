"""What a round's recovery costs, from settings and configs alone: hours, and memory of one device.

N is the number of parameters.
"""

from typing import TYPE_CHECKING

from ptl_fast.config.trainer import zero_stage
from ptl_fast.model import flops
from ptl_fast.model.parts import parameters_beside
from ptl_fast.model.widths import ffn_width, num_active_experts, num_experts
from ptl_fast.recovery import registry
from ptl_fast.recovery.estimate import Estimate, Situation
from ptl_fast.run.gpus import Gpu
from ptl_fast.run.this_machine import chosen

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config

# What Python takes on a CPU for a batch of training, and for each of its layers, whatever their
# size.
BATCH_SECONDS, LAYER_SECONDS = 0.01, 0.0025


def itemsize(config: "Config", device: Gpu) -> int:
    """Bytes of a weight in the computation: on a CPU, auto is float32."""
    dtype = config.model.dtype
    return 4 if dtype == "float32" or (dtype == "auto" and device.is_cpu) else 2


def estimates(
    model: "PretrainedConfig",
    original: "PretrainedConfig",
    config: "Config",
    names: list[str],
    num_tokens: int | None,
) -> list[Estimate]:
    """Estimate the cost of each named recovery of a round; arguments as in ``predict``."""
    recoveries = registry.find(names)
    num_on_text = sum(each.on_text for each in recoveries)
    situation = Situation(
        config=model,
        original=original,
        num_tokens=None if num_tokens is None or not num_on_text else num_tokens / num_on_text,
        sequence_length=config.data.sequence_length,
        gradient_checkpointing=config.trainer.gradient_checkpointing,
        grpo=config.grpo,
        opd=config.opd,
        vllm=config.trainer.rollouts == "vllm",
    )
    return [each.estimate(situation) for each in recoveries]


def training_bytes(
    model: "PretrainedConfig", original: "PretrainedConfig", config: "Config", num_gpus: int
) -> int:
    """Estimate the peak memory of recovery on one GPU, over all its recoveries.

    Weights, gradients and Adam's state (not of a vision tower), divided over the GPUs as the ZeRO
    stage says; activations; further models, such as --grpo-kl's reference model or opd's teacher.
    vLLM's engine is not included.
    """
    beside = parameters_beside(model) or 0
    num_parameters = flops.count_weights(model).num_parameters - beside
    parts = estimates(model, original, config, config.recovery.all_recoveries, 0)
    num_teacher = flops.count_weights(original).num_parameters
    others = max(
        part.num_weight_copies * num_parameters + part.with_teacher * num_teacher for part in parts
    )
    size = itemsize(config, chosen(config.run.dry_run_gpus)[1])
    state = _state_bytes(num_parameters, config, num_gpus, size)
    training = _activation_bytes(model, config, size)
    divides = config.trainer.deepspeed is not None and _zero_stage(config) == 3
    if divides and not stays_divided(config, config.recovery.all_recoveries, num_gpus):
        # at the end every rank gathers the whole model, beside its part of the state
        training = max(training, size * num_parameters)
    return state + size * (others + beside) + training


def stays_divided(config: "Config", names: list[str], num_gpus: int) -> bool:
    """Whether no rank has the whole model before and after ZeRO-3 divides it, if nothing else runs
    it: its layers come from the disk.
    """
    divides = num_gpus > 1 and zero_stage(config.trainer.deepspeed) == 3
    streams = config.model.stream and not config.evaluation.tasks
    return streams and divides and registry.takes_divided(names)


def hours(num_flops: float, num_gpus: int, gpu: Gpu) -> float:
    """Hours for this many FLOPs of a model."""
    return num_flops / (num_gpus * gpu.flops) / 3600


def training_hours(
    parts: list[Estimate], model: "PretrainedConfig", config: "Config", num_gpus: int, gpu: Gpu
) -> float | None:
    """Hours of a round's recoveries; None if it is not known how many tokens there are."""
    if any(part.num_tokens is None for part in parts):
        return None
    work = sum((part.num_tokens or 0) * part.flops_per_token for part in parts)
    found = hours(work, num_gpus, gpu)
    if gpu.is_cpu:
        # on a GPU this happens while it computes
        trainer, tokens = config.trainer, sum(part.num_tokens or 0 for part in parts)
        batch = min(trainer.micro_batch, trainer.global_batch) * config.data.sequence_length
        seconds = BATCH_SECONDS + LAYER_SECONDS * model.num_hidden_layers
        found += tokens / batch * seconds / 3600
    return found


def _state_bytes(num_parameters: int, config: "Config", num_gpus: int, itemsize: int) -> int:
    """Bytes of weights, gradients and optimizer state per GPU, by table 1 of arXiv 1910.02054.

    With DeepSpeed in half precision: 2 N weights, 2 N gradients, and 12 N for float32 master
    weights and Adam's two moments. In float32, or without DeepSpeed, there are no separate master
    weights: 4 N + 4 N + 8 N. ZeRO stage 1 divides the optimizer state over the GPUs, stage 2 the
    gradients as well, stage 3 also the weights.
    """
    if config.trainer.deepspeed is None:
        return 16 * num_parameters
    stage = _zero_stage(config)
    # bytes per parameter; ``whole`` is what every GPU holds in full
    weights, gradients, optimizer = (4, 4, 8) if itemsize == 4 else (2, 2, 12)
    whole = {0: weights + gradients + optimizer, 1: weights + gradients, 2: weights, 3: 0}[stage]
    divided = weights + gradients + optimizer - whole
    return round(num_parameters * (whole + divided / num_gpus))


def _zero_stage(config: "Config") -> int:
    """The stage of ZeRO that --deepspeed names.

    Raises:
        ValueError: the DeepSpeed file's is not 0, 1, 2 or 3 (such as "auto").
    """
    assert config.trainer.deepspeed is not None
    stage = zero_stage(config.trainer.deepspeed)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ValueError(
            f"--deepspeed {config.trainer.deepspeed}: its ZeRO stage is {stage}; for --dry-run,"
            " write 0, 1, 2 or 3 there"
        )
    return stage


def _activation_bytes(model: "PretrainedConfig", config: "Config", itemsize: int) -> int:
    """Bytes of activations that backward needs for one micro-batch, logits included.

    Per token, a decoder layer keeps 6 tensors of the hidden size, 2 each of the queries' and the
    keys' width, and 4 of the FFN width, with experts for each that a token goes to (shared ones are
    not counted); FlashAttention or SDPA store no attention matrix. With gradient checkpointing each
    layer keeps its input alone, except the one being recomputed. Logits are there in the
    computation's type, as a float32 copy and as its gradient.
    """
    tokens = config.trainer.micro_batch * config.data.sequence_length
    query, key_value = flops.attention_widths(model)
    width = ffn_width(model) * (num_active_experts(model) if num_experts(model) else 1)
    layer = itemsize * (6 * model.hidden_size + 2 * query + 2 * key_value + 4 * width)
    layers = model.num_hidden_layers * layer
    if config.trainer.gradient_checkpointing:
        layers = model.num_hidden_layers * itemsize * model.hidden_size + layer
    return tokens * (layers + (itemsize + 8) * model.vocab_size)

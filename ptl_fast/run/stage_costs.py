"""What each stage of a run costs, from settings and configs alone: seconds, and memory.

Seconds are operations over what the device can do, and bytes over what a disk can do; memory is
that of one device and, on its machine, of the host, for each rank. On a CPU both are the
process's. Evaluation is not here: it depends on the held-out texts and on how long answers are.

H is the hidden size, I the FFN width and K what is left of it, T the calibration tokens, N the
number of parameters; L layers.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ptl_fast.base import memory
from ptl_fast.base.progress import duration
from ptl_fast.baselines import SCORERS
from ptl_fast.model import flops
from ptl_fast.model.widths import ffn_width, tokens_per_ffn
from ptl_fast.recovery import registry
from ptl_fast.run import data_amount, pruning_memory, recovery_costs
from ptl_fast.run.gpus import NARROW, Gpu
from ptl_fast.run.this_machine import chosen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config

LOADING, SCORING, PRUNING, RECOVERY, SAVING = "loading", "scoring", "pruning", "recovery", "saving"
# Assumed of reading, writing and comparing weights, and of tokenizing text; seconds until the
# libraries are loaded; and what a process has in memory without a model. As on the CPU of
# docs/scale.md.
BYTES_PER_SECOND, TEXT_BYTES_PER_SECOND, LIBRARIES_SECONDS = 4e8, 1e6, 5
PROCESS_BYTES = 2 * memory.GIB // 3
LESS = {
    SCORING: "--calibration-tokens, or --scorer activation --compensate false,",
    PRUNING: "--compensate false",
    RECOVERY: "--recovery-tokens",
}
"""What shortens a stage."""
# of 8 x 8 blocks of a symmetric product, these are computed (scoring.gram)
HALF = 36 / 64
# I^3 of elimination (scoring.reconstruction), by whether the width is above NARROW; below it is 1.7
# at less than half of the rate, as the whole inverse is updated for every chunk
ELIMINATION = {True: 1.4, False: 3.8}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a stage; of a run's rounds together, the seconds of all and the most memory of one."""

    stage: str
    seconds: float | None
    """None where it is not known how many tokens there are."""
    device_bytes: int
    """On one device."""
    host_bytes: int
    """Of each rank, on the machine; of the main rank alone where it saves."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The configs and settings of a round that is to be estimated."""

    before: "PretrainedConfig"
    after: "PretrainedConfig"
    original: "PretrainedConfig"
    config: "Config"
    names: list[str]
    """Recoveries that follow."""
    num_tokens: int | None
    """Their tokens of text."""


def of_run(rounds: "Iterable[Round]") -> list[Cost]:
    """The stages of a whole run in their order."""
    total: dict[str, Cost] = {}
    for each in rounds:
        for cost in _stages(each, is_first=not total):
            total[cost.stage] = _together(total[cost.stage], cost) if cost.stage in total else cost
    return list(total.values())


def line(costs: list[Cost], device: Gpu) -> str:
    """The dry run's sentence: each stage, and which takes the longest."""
    parts = []
    for cost in costs:
        seconds = "unknown time" if cost.seconds is None else duration(cost.seconds)
        host = "" if device.is_cpu else f" and {memory.in_words(cost.host_bytes)} on the host"
        parts.append(f"{cost.stage} {seconds} in {memory.in_words(cost.device_bytes)}{host}")
    known = [cost for cost in costs if cost.seconds is not None]
    longest = max(known, key=lambda cost: cost.seconds or 0).stage
    less = f" ({LESS[longest]} makes it shorter)" if longest in LESS else ""
    rank = "" if device.is_cpu else " (memory of one rank)"
    return (
        f"Stages of all rounds together{rank}: {', '.join(parts)}. The longest is"
        f" {longest}{less}. Evaluation is not among them."
    )


def _together(one: Cost, other: Cost) -> Cost:
    known = one.seconds is not None and other.seconds is not None
    return replace(
        one,
        seconds=(one.seconds or 0) + (other.seconds or 0) if known else None,
        device_bytes=max(one.device_bytes, other.device_bytes),
        host_bytes=max(one.host_bytes, other.host_bytes),
    )


def _stages(each: Round, is_first: bool) -> list[Cost]:
    found = [_loading(each)] if is_first else []
    if ffn_width(each.after) < ffn_width(each.before):
        found += [_scoring(each), _pruning(each)]
    trains = registry.trains(each.names)
    return [*found, *([_recovery(each)] if trains else []), _saving(each)]


def _weights(config: "PretrainedConfig", itemsize: int) -> int:
    return itemsize * flops.count_weights(config).num_parameters


def _cost(stage: str, seconds: float | None, device: Gpu, own: float, host: float) -> Cost:
    """Args: own: bytes on a device; host: bytes that are on the host besides, on a CPU too."""
    if device.is_cpu:
        num_bytes = round(PROCESS_BYTES + max(own, host))
        return Cost(stage=stage, seconds=seconds, device_bytes=num_bytes, host_bytes=num_bytes)
    host_bytes = round(PROCESS_BYTES + host)
    return Cost(stage=stage, seconds=seconds, device_bytes=round(own), host_bytes=host_bytes)


def _loading(each: Round) -> Cost:
    """The original is read to the host, and then to the device."""
    _, device = chosen(each.config.run.dry_run_gpus)
    size = _weights(each.before, recovery_costs.itemsize(each.config, device))
    text = (data_amount.num_bytes(each.config) or 0) / TEXT_BYTES_PER_SECOND
    # with --stream every layer is read, one at a time
    seconds = LIBRARIES_SECONDS + text + size / BYTES_PER_SECOND
    if each.config.model.stream:
        return _cost(LOADING, seconds, device, 0, 0)
    # on a CPU the pages of the files are beside what was read of them
    return _cost(LOADING, seconds, device, 2 * size if device.is_cpu else size, size)


def _scoring(each: Round) -> Cost:
    """Passes over the calibration tokens, and elimination, divided among the devices by FFNs."""
    num_devices, device = chosen(each.config.run.dry_run_gpus)
    config, model, width = each.config, each.before, ffn_width(each.before)
    size = recovery_costs.itemsize(config, device)
    seconds, weights, batch = _collecting(each), _weights(model, size), _batch_bytes(each, size)
    if not pruning_memory.reads_grams(config):
        return _placed(SCORING, each, seconds, weights + batch)
    if SCORERS[config.score.scorer].reads_grams:
        number = pruning_memory.num_ffns(model)
        # with --stream each layer is eliminated while all ranks wait for it
        own = number if config.model.stream else -(-number // num_devices)
        seconds += own * ELIMINATION[width > NARROW] * width**3 / device.solving(width)
    solving = 8 * width**2 + 16 * model.hidden_size * width
    held = pruning_memory.num_at_once(model, config, device, size) * 8 * width**2
    return _placed(SCORING, each, seconds, weights + held + max(batch, solving))


def _collecting(each: Round) -> float:
    """Seconds of the passes that take statistics and Gram matrices, divided among the devices."""
    num_devices, device = chosen(each.config.run.dry_run_gpus)
    config, model, length = each.config, each.before, each.config.data.sequence_length
    num_tokens = config.score.calibration_tokens
    sequence = flops.flops_per_sample(model, length, causal=True, lm_head=False)
    seconds = _num_passes(each) * num_tokens / length * sequence / device.flops
    if pruning_memory.reads_grams(config):
        rows = pruning_memory.num_ffns(model) * tokens_per_ffn(model, num_tokens)
        seconds += rows * 2 * ffn_width(model) ** 2 * HALF / device.flops64
    return seconds / num_devices


def _num_passes(each: Round) -> int:
    """Over the calibration tokens: as many as it takes for all Gram matrices."""
    config, model = each.config, each.before
    if config.model.stream or not pruning_memory.reads_grams(config):
        return 1
    _, device = chosen(config.run.dry_run_gpus)
    size = recovery_costs.itemsize(config, device)
    at_once = pruning_memory.num_at_once(model, config, device, size)
    return -(-pruning_memory.num_ffns(model) // at_once)


def _batch_bytes(each: Round, size: int) -> int:
    """A batch's activations in one layer, and in fp64 for the Gram matrix."""
    config, model = each.config, each.before
    tokens = config.trainer.micro_batch * config.data.sequence_length
    return tokens * (size * (4 * model.hidden_size + 3 * ffn_width(model)) + 8 * ffn_width(model))


def _pruning(each: Round) -> Cost:
    """Compensation, on every rank alike; Gram matrices that did not all fit are made again."""
    _, device = chosen(each.config.run.dry_run_gpus)
    config, model = each.config, each.before
    width, kept, hidden = ffn_width(model), ffn_width(each.after), model.hidden_size
    size = recovery_costs.itemsize(config, device)
    weights = _weights(model, size)
    if not config.prune.compensate:
        return _placed(PRUNING, each, 0, weights)
    number = pruning_memory.num_ffns(model)
    at_once = pruning_memory.num_at_once(model, config, device, size)
    seconds = number * (
        2 * hidden * kept * (width - kept if device.in_float32(kept) else width) / device.flops64
        + (kept**3 / 3 + 2 * hidden * kept**2) / device.solving(kept)
    )
    seconds += _collecting(each) if _num_passes(each) > 1 else 0
    columns = number * hidden * kept * size
    own = weights + at_once * 8 * width**2 + columns + 16 * kept**2 + 16 * hidden * kept
    return _placed(PRUNING, each, seconds, own)


def _placed(stage: str, each: Round, seconds: float, own: int) -> Cost:
    """With --stream, one layer and hidden states instead; and the weights go through the host."""
    _, device = chosen(each.config.run.dry_run_gpus)
    if not each.config.model.stream:
        return _cost(stage, seconds, device, own, 0)
    size = recovery_costs.itemsize(each.config, device)
    own = pruning_memory.streaming_bytes(each.before, each.config, size)
    # weights go through the host, a tensor or a layer at a time
    host = _piece(each.before, size)
    if stage == PRUNING and not _stays_on_disk(each):
        # then the smaller model is loaded whole
        whole = _weights(each.after, size)
        own, host = max(own, whole), max(host, whole)
    return _cost(stage, seconds, device, own, host)


def _piece(config: "PretrainedConfig", itemsize: int) -> int:
    """Bytes of what is in memory of a model whose layers are on disk: a layer, or the embedding."""
    embedding = config.vocab_size * config.hidden_size * itemsize
    return max(pruning_memory.layer_bytes(config, itemsize), embedding)


def _stays_on_disk(each: Round) -> bool:
    """Whether no process has the smaller model: as ``stream_step.stays_on_disk``, from settings."""
    config, (num_devices, _) = each.config, chosen(each.config.run.dry_run_gpus)
    if registry.trains(each.names):
        return recovery_costs.stays_divided(config, each.names, num_devices)
    return config.model.stream and not config.evaluation.tasks


def _recovery(each: Round) -> Cost:
    """Training."""
    num_devices, device = chosen(each.config.run.dry_run_gpus)
    parts = recovery_costs.estimates(
        each.after, each.original, each.config, each.names, each.num_tokens
    )
    found = recovery_costs.training_hours(parts, each.after, each.config, num_devices, device)
    args = (each.after, each.original, each.config, num_devices)
    own = recovery_costs.training_bytes(*args)
    # read and written a layer or a tensor at a time
    size = recovery_costs.itemsize(each.config, device)
    host = _piece(each.after, size) if _stays_on_disk(each) else 0
    return _cost(RECOVERY, None if found is None else 3600 * found, device, own, host)


def _saving(each: Round) -> Cost:
    """The smaller model is written, and loaded again to be compared with what is in memory; or a
    tensor and a layer at a time, from the disk.
    """
    _, device = chosen(each.config.run.dry_run_gpus)
    itemsize = recovery_costs.itemsize(each.config, device)
    size = _weights(each.after, itemsize)
    seconds = 3 * size / BYTES_PER_SECOND
    if _stays_on_disk(each):
        piece = _piece(each.after, itemsize)
        return _cost(SAVING, seconds, device, piece, 2 * piece)
    return _cost(SAVING, seconds, device, size, 2 * size)

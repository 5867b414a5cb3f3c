"""Whether a model's weights fit in memory, and what is done where they do not."""

from typing import TYPE_CHECKING

from ptl_fast.base import memory
from ptl_fast.base.console import say
from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.model import flops, loading, precision
from ptl_fast.run.checks import check_stream

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config

REMEDY = (
    "--stream --eval-tasks none prunes neurons with one layer in memory, and --dtype bfloat16 needs"
    " half of float32"
)


def weight_bytes(config: "Config", device: str, model: "PretrainedConfig") -> int:
    """Bytes of a model's weights as a run computes with them on a device."""
    computed = precision.as_computed(config.model, device, model)
    itemsize = loading.computed_dtype(computed, device, model).itemsize
    return flops.count_weights(model).num_parameters * itemsize


def with_stream(config: "Config", original: "PretrainedConfig", device: str) -> "Config":
    """The settings, with --stream where the original does not fit and a run can do without it.

    Whether whole models fit is otherwise checked when they are loaded.
    """
    needed, left = weight_bytes(config, device, original), memory.free(device)
    if config.model.stream or needed <= left or not _can_stream(config, original):
        return config
    say(
        f"{config.model.model} needs {memory.in_words(needed)} for its weights, and"
        f" {memory.in_words(left)} are free on {device}: it is pruned with one layer in memory"
        " (--stream)."
    )
    return config.changed(stream=True)


def _can_stream(config: "Config", original: "PretrainedConfig") -> bool:
    tasks = eval_tasks.parse_tasks(config.evaluation.tasks, config.evaluation.allow_code_execution)
    if tasks or config.prune.keep == 1:
        return False
    try:
        check_stream(config.changed(stream=True), original)
    except ValueError:
        return False
    return True

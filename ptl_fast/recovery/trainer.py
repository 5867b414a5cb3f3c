"""What every training by transformers' Trainer shares: progress, checkpoints, DeepSpeed, and
leaving the model as it was found.
"""

import contextlib
import gc
import importlib.util
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import write_atomically
from ptl_fast.config.config import deepspeed_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from ptl_fast.config.config import Config
from ptl_fast.base.errors import Diverged

COMPLETE = "complete"


def batch_split(config: "Config") -> tuple[int, int]:
    """(sequences in a rank's forward pass, forward passes in a step): together with the ranks, the
    global batch.

    Raises:
        ValueError: the global batch does not divide.
    """
    micro_batch = min(config.micro_batch, max(1, config.global_batch // distributed.world_size()))
    accumulation, rest = divmod(config.global_batch, micro_batch * distributed.world_size())
    if rest:
        raise ValueError(
            f"--global-batch {config.global_batch} is no multiple of --micro-batch {micro_batch}"
            " times"
            f" {distributed.world_size()} ranks; change one of them"
        )
    return micro_batch, accumulation


def rollout_split(config: "Config") -> tuple[int, int]:
    """(rollouts in a rank's forward pass, forward passes in a step): --grpo-micro-batch, or no more
    tokens than in a pass of text.

    Raises:
        ValueError: a step's rollouts do not divide among the ranks.
    """
    total, num_ranks = config.grpo_prompts * config.grpo_rollouts, distributed.world_size()
    if total % num_ranks:
        raise ValueError(
            f"--grpo-prompts {config.grpo_prompts} times --grpo-rollouts {config.grpo_rollouts} do"
            f" not divide among {num_ranks}"
            " ranks; change one of them"
        )
    longest = config.grpo_prompt_tokens + config.grpo_response_tokens
    most = config.grpo_micro_batch or max(1, config.micro_batch * config.sequence_length // longest)
    micro_batch = next(
        size
        for size in range(min(most, total // num_ranks), 0, -1)
        if total // num_ranks % size == 0
    )
    return micro_batch, total // num_ranks // micro_batch


def common_arguments(model: "PreTrainedModel", folder: Path, config: "Config") -> dict[str, Any]:
    """The fields of transformers' TrainingArguments that no recovery changes."""
    on_cpu = model.device.type == "cpu"
    return {
        "output_dir": str(folder),
        "bf16": model.dtype == torch.bfloat16,
        "fp16": model.dtype == torch.float16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": ["tensorboard"],
        "seed": config.seed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "ddp_timeout": int(distributed.TIMEOUT.total_seconds()),
        "deepspeed": deepspeed_settings(config.deepspeed, on_cpu),
        "disable_tqdm": True,
        "use_liger_kernel": config.liger,
        "liger_kernel_config": liger_kernels(config) if config.liger else None,
    }


def liger_kernels(config: "Config") -> dict[str, bool]:
    """Which of Liger's kernels train: no loss that all of torch would share, and no FFN where ours
    stands.
    """
    own_ffn = config.fused_ffn or config.score_during_recovery
    return {
        "cross_entropy": False,
        "fused_linear_cross_entropy": True,
        "swiglu": not own_ffn,
        "geglu": not own_ffn,
    }


def check_liger(device: str) -> None:
    """Raise ValueError where --liger cannot work."""
    if device == "cpu":
        raise ValueError(
            "--liger trains on kernels that run on GPUs only, and this run is on a CPU; leave it"
            " out (--fused-ffn is for both)"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ValueError(
            "--liger needs the package liger-kernel; pip install liger-kernel, or leave it out"
        )


@contextlib.contextmanager
def unpatched_afterwards(model: nn.Module) -> Iterator[None]:
    """Undo what Liger puts into a model's modules and into transformers' module of its family, for
    scoring and evaluation.
    """
    namespace = vars(sys.modules[type(model).__module__])
    before, names = dict(namespace), {module: set(vars(module)) for module in model.modules()}
    yield
    namespace.update(before)
    for module, known in names.items():
        for name in set(vars(module)) - known:
            delattr(module, name)


def run(trainer: Trainer, checkpoint: str | None, model: "PreTrainedModel") -> None:
    """Train, from a checkpoint if there is one; the bar goes also when an error ends it.

    Raises:
        Diverged: the loss is NaN or infinite. Training has let go of the model, whose weights are
            of no use.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Diverged:
        tear_down(trainer, model)
        raise
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Progress):
                callback.bar.close()


class Progress(TrainerCallback):
    """One bar with the current loss, or what else the logs have under the name ``shown``."""

    def __init__(self, description: str, shown: str = "loss") -> None:
        self.description, self.shown, self.bar = description, shown, tqdm(disable=True)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        description = f"{self.description}: recover"
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=description,
            leave=False,
            disable=not distributed.is_main(),
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        if self.shown in kwargs["logs"]:
            self.bar.set_postfix({self.shown: kwargs["logs"][self.shown]}, refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        self.bar.close()


class StopAtNan(TrainerCallback):
    def __init__(self, flag: str = "--learning-rate") -> None:
        self.flag = flag

    def on_log(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        loss = float(kwargs["logs"].get("loss", 0.0))
        if not math.isfinite(loss):
            raise Diverged(
                f"recovery's loss is {loss} at step {state.global_step} of {state.max_steps};"
                f" lower {self.flag}, or prune less in"
                " a round (more --rounds)"
            )


class Checkpoints(TrainerCallback):
    """Asks for a checkpoint when enough time has passed, marks it complete once it is on disk, and
    removes the ones before.

    Args:
        end: the step after which none is needed.
        keep: called by every rank with the new checkpoint's folder, to add what the Trainer's own
            state lacks.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        end: Callable[[], int],
        keep: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder, self.seconds, self.end, self.keep = folder, seconds, end, keep
        self.last = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        due = time.monotonic() - self.last >= self.seconds and state.global_step < self.end()
        control.should_save = distributed.agree(due)

    def on_save(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if self.keep is not None:
            self.keep(checkpoint)
        distributed.barrier()
        if distributed.is_main():
            write_atomically(checkpoint / COMPLETE, json.dumps(_sizes(checkpoint)).encode())
            for other in self.folder.glob("checkpoint-*"):
                if other != checkpoint:
                    shutil.rmtree(other)
        distributed.barrier()
        self.last = time.monotonic()


@contextlib.contextmanager
def borrowed(model: "PreTrainedModel", with_deepspeed: bool) -> Iterator[None]:
    """Lend the model to a Trainer, which ends with ``tear_down``; its type and all that is not
    trained comes back as it was.

    Without DeepSpeed, half-precision weights are float32 meanwhile, for training under autocast.
    """
    dtype, use_cache = model.dtype, model.config.use_cache
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attributes = [(module, set(module.__dict__)) for module in model.modules()]
    if dtype != torch.float32 and not with_deepspeed:
        renew_parameters_(
            model, torch.float32
        )  # an update of 1e-5 vanishes in bf16's 8 bits of mantissa
    yield
    renew_parameters_(model, dtype)
    for (
        name,
        buffer,
    ) in buffers.items():  # DeepSpeed casts them too, and rotary frequencies must stay float32
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)
    for (
        module,
        names,
    ) in (
        attributes
    ):  # ZeRO-3 leaves parameters of this training in them, which the next would take for its own
        for name in set(module.__dict__) - names:
            delattr(module, name)
    model.config.use_cache = use_cache  # Trainer turns it off, and the saved config would keep that


def deepspeed_settings(name: str | None, on_cpu: bool) -> dict | None:
    """The JSON of --deepspeed. Without a launcher, one GPU is a group of one; one CPU process
    trains without DeepSpeed.
    """
    if name is None:
        return None
    if "WORLD_SIZE" not in os.environ:
        if on_cpu:
            return None
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500"
        )
    return json.loads(deepspeed_file(name).read_text())


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end and is still whole, or None."""
    markers = [
        file
        for file in folder.glob(f"checkpoint-*/{COMPLETE}")
        if json.loads(file.read_text()) == _sizes(file.parent)
    ]
    complete = distributed.agree([str(marker.parent) for marker in markers])
    return max(complete, key=lambda path: int(path.rsplit("-", 1)[1]), default=None)


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Sizes of a checkpoint's files: after a power failure some may be cut off."""
    files = sorted(
        path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE
    )
    return {str(file.relative_to(checkpoint)): file.stat().st_size for file in files}


def tear_down(trainer: Trainer, model: "PreTrainedModel") -> None:
    """Undo everything that training attached to the model, so that the next round starts from plain
    weights.
    """
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if trainer.is_deepspeed_enabled:
        whole = _whole_weights(model)
        trainer.model_wrapped.destroy()  # type: ignore[operator]
        _leave_zero3_(model, whole)
    trainer.accelerator.free_memory()
    # accelerate wraps a model's forward in autocast, and would take a model with this mark for
    # wrapped
    for attribute in ("_is_accelerate_prepared", "forward"):
        model.__dict__.pop(attribute, None)
    model.gradient_checkpointing_disable()
    model.disable_input_require_grads()
    model.zero_grad(set_to_none=True)
    model.eval()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _whole_weights(model: nn.Module) -> dict[int, torch.Tensor]:
    """The weights that ZeRO-3 has spread over the ranks, whole, by their parameters' id; nothing
    after other stages.
    """
    spread = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not spread:
        return {}
    import deepspeed

    whole = {}
    for parameter in spread:
        with deepspeed.zero.GatheredParameters([parameter]):
            whole[id(parameter)] = parameter.detach().clone()
    return whole


def _leave_zero3_(model: nn.Module, whole: dict[int, torch.Tensor]) -> None:
    """Give the model plain parameters in plain dicts, which ZeRO-3 replaces and leaves behind."""
    plain = {identity: nn.Parameter(weight) for identity, weight in whole.items()}
    for module in model.modules() if whole else []:
        module._parameters = {
            name: plain.get(id(each), each) for name, each in module._parameters.items()
        }


def renew_parameters_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give each parameter a new object, memory and type: optimizers leave hooks on them and views
    of flat buffers in them.
    """
    renewed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in renewed:
                renewed[id(parameter)] = nn.Parameter(
                    parameter.detach().to(dtype, copy=True), parameter.requires_grad
                )
            setattr(module, name, renewed[id(parameter)])

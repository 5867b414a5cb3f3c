"""What every training by transformers' Trainer shares: batches, arguments, progress, divergence."""

import math
import os
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from ptl_fast.base import distributed
from ptl_fast.base.errors import Diverged
from ptl_fast.config.trainer import read_deepspeed
from ptl_fast.recovery.borrowed_model import tear_down
from ptl_fast.recovery.liger import liger_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from ptl_fast.config.trainer import TrainerSettings
    from ptl_fast.recovery.task import RecoveryTask


def batch_split(settings: "TrainerSettings") -> tuple[int, int]:
    """(sequences in a rank's forward pass, forward passes in a step): together with the ranks, the
    global batch.

    Raises:
        ValueError: the global batch does not divide.
    """
    micro_batch = min(
        settings.micro_batch, max(1, settings.global_batch // distributed.world_size())
    )
    accumulation, rest = divmod(settings.global_batch, micro_batch * distributed.world_size())
    if rest:
        raise ValueError(
            f"--global-batch {settings.global_batch} is no multiple of --micro-batch {micro_batch}"
            " times"
            f" {distributed.world_size()} ranks; change one of them"
        )
    return micro_batch, accumulation


def common_arguments(model: "PreTrainedModel", task: "RecoveryTask") -> dict[str, Any]:
    """The fields of transformers' TrainingArguments that no recovery changes."""
    on_cpu = model.device.type == "cpu"
    return {
        "output_dir": str(task.folder),
        "bf16": model.dtype == torch.bfloat16,
        "fp16": model.dtype == torch.float16,
        "gradient_checkpointing": task.trainer.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": ["tensorboard"],
        "seed": task.seed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "ddp_timeout": int(distributed.TIMEOUT.total_seconds()),
        "deepspeed": deepspeed_settings(task.trainer.deepspeed, on_cpu),
        "disable_tqdm": True,
        "use_liger_kernel": task.trainer.liger,
        "liger_kernel_config": liger_kernels(task.has_own_ffn) if task.trainer.liger else None,
    }


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
    return read_deepspeed(name)


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

"""Shared by all recoveries on transformers' Trainer: checkpoints with every weight, batch split,
arguments, progress, NaN stop.
"""

import math
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from ptl_fast.base import distributed, interruption
from ptl_fast.base.disk import storing
from ptl_fast.base.errors import Diverged
from ptl_fast.base.progress import Steps
from ptl_fast.base.trackers import TRACKERS
from ptl_fast.config.trainer import read_deepspeed
from ptl_fast.recovery.borrowed_model import tear_down
from ptl_fast.recovery.liger import liger_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from ptl_fast.base.run_files import Checkpoint
    from ptl_fast.config.trainer import TrainerSettings
    from ptl_fast.recovery.task import RecoveryTask


class ExactCheckpoints(Trainer):
    """A Trainer that goes on with the very weights that its checkpoint has.

    transformers saves some models under the names of their original repositories, such as a
    mixture's experts one by one where the model has one tensor for all. The Trainer loads a
    checkpoint by the model's own names, and only warns of those that it does not find: the training
    would go on with experts as they were at its beginning. So checkpoints have the model's own
    names here, and one that lacks a weight is refused.
    """

    def _save(self, *args: Any, **kwargs: Any) -> None:
        model: Any = self.model
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
        try:
            super()._save(*args, **kwargs)
        finally:
            del model.save_pretrained

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Called by the Trainer with the names that the model and a checkpoint do not share.

        Raises:
            ValueError: a weight is not in the checkpoint, or has no place in the model.
        """
        model: Any = self.model
        tensors, missing = model.state_dict(keep_vars=True), set(load_result.missing_keys)
        # of tied weights the checkpoint has one; some constants are never saved
        found = {id(tensor) for name, tensor in tensors.items() if name not in missing}
        constants = model._keys_to_ignore_on_save or ()
        lost = [
            name
            for name in load_result.missing_keys
            if id(tensors[name]) not in found and not any(re.search(e, name) for e in constants)
        ]
        for name in (*lost, *load_result.unexpected_keys):
            raise ValueError(
                f"a checkpoint in {self.args.output_dir} is not of the model that is trained: they"
                f" differ in {name}; delete that folder, and the round's training begins anew"
            )


def batch_split(settings: "TrainerSettings") -> tuple[int, int]:
    """Return (micro-batch per rank, gradient-accumulation steps).

    micro-batch * accumulation steps * world size = --global-batch, so results do not depend on the
    number of ranks.

    Raises:
        ValueError: the global batch is no multiple of micro-batch times world size.
    """
    # a global batch that is small for this many ranks lowers the micro-batch
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
    """Return the fields of transformers' TrainingArguments that are the same in all recoveries."""
    on_cpu = model.device.type == "cpu"
    return {
        "output_dir": str(task.folder.path),
        "bf16": model.dtype == torch.bfloat16,
        "fp16": model.dtype == torch.float16,
        "gradient_checkpointing": task.trainer.gradient_checkpointing,
        # the non-reentrant variant also works with DDP and hooks
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        # the examples have columns that the model's forward does not take, such as mask
        "remove_unused_columns": False,
        "logging_steps": 1,
        # the filter would replace a NaN loss before StopAtNan sees it
        "logging_nan_inf_filter": False,
        # the Checkpoints callback asks for checkpoints by time
        "save_strategy": "no",
        "report_to": task.trainer.trackers,
        "run_name": task.run_name or task.name,
        "seed": task.seed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        # hours: the other ranks wait in a collective while the main rank judges answers
        "ddp_timeout": int(distributed.TIMEOUT.total_seconds()),
        "deepspeed": deepspeed_settings(task.trainer.deepspeed, on_cpu),
        "disable_tqdm": True,  # the Progress callback has its own bar
        "use_liger_kernel": task.trainer.liger,
        "liger_kernel_config": liger_kernels(task.has_own_ffn) if task.trainer.liger else None,
    }


def deepspeed_settings(name: str | None, on_cpu: bool) -> dict | None:
    """Return the DeepSpeed config of --deepspeed, or None to train without DeepSpeed.

    DeepSpeed needs a process group. Without a launcher, one GPU becomes a group of one rank, by
    environment variables that this sets; a single CPU process trains without DeepSpeed.
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


def run(trainer: Trainer, checkpoint: "Checkpoint | None", model: "PreTrainedModel") -> None:
    """Train, resuming from ``checkpoint`` if there is one; close the progress bar in any case.

    Raises:
        StorageFailed: a checkpoint cannot be written.
        Diverged: the loss is NaN or infinite. The model is detached from the Trainer by then, but
            its weights are useless.
    """
    try:
        with storing(Path(trainer.args.output_dir or ".")), interruption.waiting():
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    except Diverged:
        tear_down(trainer, model)
        raise
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Progress):
                callback.bar.close()
        for name in trainer.args.report_to or ():
            TRACKERS[name].end_training()


class Progress(TrainerCallback):
    """A progress bar over optimizer steps that shows the logged value ``shown`` (the loss).

    Inside a step it counts micro-batches: on a CPU a step may take longer than a reader waits.
    """

    def __init__(self, description: str, shown: str = "loss") -> None:
        self.description, self.shown, self.bar = description, shown, Steps(hidden=True)
        self.logged = ""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        description = f"{self.description}: recover"
        self.bar = Steps(description, state.max_steps, initial=state.global_step)

    def on_substep_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        self.bar.update(1 / args.gradient_accumulation_steps)
        done = round((self.bar.n - state.global_step) * args.gradient_accumulation_steps)
        batches = f"batch {done}/{args.gradient_accumulation_steps}"
        self.bar.note = ", ".join(filter(None, (self.logged, batches)))

    def on_log(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        if self.shown in kwargs["logs"]:
            self.logged = f"{self.shown} {float(kwargs['logs'][self.shown]):.4g}"
            self.bar.note = self.logged
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
    """Raises ``Diverged`` when the logged loss is NaN or infinite; suggests lowering ``flag``."""

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

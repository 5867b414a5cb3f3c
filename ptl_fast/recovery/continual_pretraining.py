"""Continual pre-training: next-token prediction on the round's part of the data."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ptl_fast.base import distributed
from ptl_fast.base.run_files import Checkpoint
from ptl_fast.data.batching import collator
from ptl_fast.recovery import optimizer_state
from ptl_fast.recovery.borrowed_model import borrowed, tear_down
from ptl_fast.recovery.checkpoints import Checkpoints
from ptl_fast.recovery.learning_rate import learning_rate
from ptl_fast.recovery.liger import unpatched_afterwards
from ptl_fast.recovery.task import (
    ForwardStatistics,
    RecoveryResult,
    RecoveryTask,
    TrainingOptions,
)
from ptl_fast.recovery.token_budget import ClosingPhase
from ptl_fast.recovery.trainer import (
    ExactCheckpoints,
    Progress,
    StopAtNan,
    batch_split,
    common_arguments,
    run,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from ptl_fast.data.packing import PackedTokens


class Teaching(Protocol):
    """Hooks by which distillation replaces the loss (see ptl_fast.recovery.distillation.loss)."""

    def prepare(self) -> None:
        """Compute what the loss needs. Called once before training, if the round trains at all."""

    def example(self, row: int) -> dict[str, Tensor]:
        """Return tensors that join the training example of sequence number ``row``."""

    def teach(self, model: nn.Module, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        """Replace the model's loss inside the context; remove ``example``'s tensors from inputs."""


def train(
    model: "PreTrainedModel", task: RecoveryTask, teaching: Teaching | None = None
) -> RecoveryResult:
    """Train in place by next-token prediction on ``task.num_tokens`` tokens, or until recovered.

    The global batches are the same on any number of ranks. Checkpoints go to ``task.folder``, and
    training resumes from one that is there. The weights keep their dtype; without DeepSpeed,
    half-precision weights train as float32 under autocast.

    ``task.options.statistics`` are taken over the last ``statistics_tokens`` tokens. After early
    stopping the closing phase may be shorter than that; it then counts as a whole.

    Args:
        teaching: replaces the loss, for distillation; None for the model's own cross-entropy.

    Raises:
        Diverged: the loss is NaN or infinite (names the step).
        ValueError: the global batch does not divide among the ranks.
    """
    options, dtype = task.options, model.dtype
    closing = ClosingPhase(
        num_steps(task.tokens, task.num_tokens, task.trainer.global_batch),
        _tokens_per_step(task.tokens, task.trainer.global_batch),
        options.held_out,
    )
    checkpoint = task.folder.newest_checkpoint()
    if checkpoint is None and options.held_out is not None:
        closing.note(0, distributed.agree(options.held_out.nll()))
        # pruning did no harm: skip training, and hand the optimizer state on unchanged
        if closing.begins == 0:
            kept = options.optimizer_state if options.keep_optimizer_state else None
            return RecoveryResult(checks=closing.checks, optimizer_state=kept)
    if teaching is not None:
        teaching.prepare()
    # only after the teacher has run: once these arguments exist, ZeRO-3 shards every model that is
    # loaded
    arguments = _training_arguments(model, task)
    autocast = partial(torch.autocast, model.device.type, dtype, enabled=dtype != torch.float32)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(task.log_folder)
    close = _Close(closing, options, autocast)
    patched = unpatched_afterwards(model) if task.trainer.liger else contextlib.nullcontext()
    with borrowed(model, arguments.deepspeed is not None), patched:
        num_sequences = arguments.max_steps * task.trainer.global_batch
        trainer = TextTrainer(
            close,
            learning_rate(options, closing),
            teaching,
            model=model,
            args=arguments,
            train_dataset=Sequences(task.tokens, num_sequences, task.seed, teaching),
            data_collator=collator(model),
            callbacks=_callbacks(task, close),
        )
        trainer.remove_callback(PrinterCallback)
        if checkpoint is not None:
            _restore(checkpoint, closing, options.statistics)
        run(trainer, checkpoint, model)
        result = _result(trainer, model, closing, task)
        tear_down(trainer, model, task.leave)
    return result


def _callbacks(task: RecoveryTask, close: "_Close") -> list[TrainerCallback]:
    """Progress, NaN stop, early stopping, checkpoints and, if asked for, statistics."""
    closing, statistics = close.closing, task.options.statistics
    callbacks: list[TrainerCallback] = [
        Progress(task.name),
        StopAtNan(),
        close,
        Checkpoints(
            task.folder,
            task.trainer.checkpoint_minutes * 60,
            # read at each step: early stopping moves the end
            lambda: closing.ends,
            partial(_keep, closing=closing, statistics=statistics),
        ),
    ]
    if statistics is not None:
        tokens, count = task.options.statistics_tokens, task.trainer.global_batch
        callbacks.append(_CountTheEnd(statistics, closing, num_steps(task.tokens, tokens, count)))
    return callbacks


def num_steps(tokens: "PackedTokens", num_tokens: int, global_batch: int) -> int:
    """Optimizer steps for about ``num_tokens`` tokens, padding not counted; at least one."""
    return max(1, round(num_tokens / _tokens_per_step(tokens, global_batch)))


def examples(tokens: "PackedTokens", num_tokens: int, global_batch: int, seed: int) -> Tensor:
    """Indices of the sequences that training on ``num_tokens`` tokens reads, in its order."""
    return Sequences(tokens, num_steps(tokens, num_tokens, global_batch) * global_batch, seed).order


def last_part(
    parts: Sequence["PackedTokens"], steps: Sequence[int], global_batch: int, seed: int
) -> "PackedTokens":
    """Return the last part of the data, with the unread sequences of earlier parts appended.

    A round that stops early leaves sequences unread; they move on to the next round's part, and
    from there, if still unread, to the one after.

    Args:
        parts: the data of each round up to the last.
        steps: optimizer steps of each round before the last.
        seed: the seed that those rounds trained with, which gives the order they read in.
    """
    tokens = parts[0]
    for part, num_steps in zip(parts[1:], steps, strict=True):
        order = Sequences(tokens, len(tokens), seed).order
        tokens = part.followed_by(tokens.rows(order[num_steps * global_batch :]))
    return tokens


class Sequences(Dataset):
    """``num_sequences`` packed sequences in a seeded order, over several epochs if needed.

    ``order``, (num_sequences,), holds their indices; every epoch has a new permutation. Examples
    are the model's inputs, the mask of real tokens and, with ``teaching``, what its loss needs.
    """

    def __init__(
        self,
        tokens: "PackedTokens",
        num_sequences: int,
        seed: int,
        teaching: Teaching | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_epochs = math.ceil(num_sequences / len(tokens))
        self.tokens, self.teaching = tokens, teaching
        self.order = torch.cat(
            [torch.randperm(len(tokens), generator=generator) for _ in range(num_epochs)]
        )[:num_sequences]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = int(self.order[index])
        return {
            **self.tokens[row],
            **(self.teaching.example(row) if self.teaching is not None else {}),
        }


class TextTrainer(ExactCheckpoints):
    """Trainer with our schedule, an optional penalty, and an optional initial optimizer state.

    Its examples carry ``mask``: which tokens count in the forward passes' statistics. The model
    does not get it.
    """

    def __init__(
        self,
        close: "_Close",
        learning_rate: Callable[[int], float],
        teaching: Teaching | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.close, self.learning_rate, self.teaching = close, learning_rate, teaching
        self.statistics, self.warm_state = close.statistics, close.optimizer_state

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        # a resumed training loads its checkpoint's state over this later
        if self.warm_state is not None:
            assert isinstance(self.model, nn.Module)
            optimizer_state.give(optimizer, self.model, self.warm_state)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self.lr_scheduler = LambdaLR(optimizer, self.learning_rate)
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        mask = inputs.pop("mask")
        # hooks in the forward pass see activations only: tell them which tokens count
        if self.statistics is not None and self.statistics.enabled:
            self.statistics.expect(mask)
        assert isinstance(self.model, nn.Module)
        with (
            self.teaching.teach(self.model, inputs) if self.teaching is not None else nullcontext()
        ):
            loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if self.close.penalty is None:
            return loss
        penalty = self.close.penalty()
        self.close.penalty_value = penalty.detach()
        # Gradient accumulation sums losses that are already divided by the whole step's tokens,
        # and averages others. The penalty must count once a step in both cases.
        is_summed = self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None
        return loss + penalty / (self.current_gradient_accumulation_steps if is_summed else 1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.close.penalty_value is not None and "loss" in logs:
            logs["penalty"] = self.close.penalty_value.item()
        super().log(logs, *args, **kwargs)


class _Close(TrainerCallback):
    """Early stopping on held-out NLL, and the start of --anticipate's penalty.

    Both belong to the closing phase, hence the name. ``penalty`` is what the Trainer adds to the
    loss, None before the closing phase; ``penalty_value`` is its last value, for the log.
    """

    def __init__(
        self, closing: ClosingPhase, options: TrainingOptions, autocast: Callable[[], Any]
    ) -> None:
        self.closing, self.held_out, self.autocast = closing, options.held_out, autocast
        self.statistics, self.optimizer_state = options.statistics, options.optimizer_state
        self.make_penalty = options.make_penalty
        self.penalty: Callable[[], Tensor] | None = None
        self.penalty_value: Tensor | None = None

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        if self.make_penalty is not None and state.global_step >= self.closing.begins:
            # under autocast like training: this runs the model to find what will be removed
            with self.autocast():
                self.penalty = self.make_penalty()
            self.make_penalty = None  # once

    def on_step_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        if self.closing.needs_check(state.global_step):
            assert self.held_out is not None
            # held-out text must not count in the statistics; the next step turns them on again
            if self.statistics is not None:
                self.statistics.enabled = False
            with self.autocast():
                nll = self.held_out.nll()
            self.closing.note(state.global_step, distributed.agree(nll))
        if state.global_step >= self.closing.ends:
            control.should_training_stop = True


class _CountTheEnd(TrainerCallback):
    """Turns the statistics on for the last ``num_steps`` optimizer steps of the round."""

    def __init__(
        self, statistics: ForwardStatistics, closing: ClosingPhase, num_steps: int
    ) -> None:
        self.statistics, self.closing, self.num_steps = statistics, closing, num_steps

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        self.statistics.enabled = state.global_step >= self.closing.ends - self.num_steps


def _keep(
    checkpoint: Checkpoint, closing: ClosingPhase, statistics: ForwardStatistics | None
) -> None:
    """Add to a checkpoint what ``_restore`` reads. Collective: every rank must call it."""
    if statistics is not None:
        # summed over ranks, so that training can resume on another number of them
        total = statistics.over_ranks()
        if distributed.is_main():
            torch.save(total, checkpoint.statistics.path)
    checkpoint.closing.write(closing.state())


def _restore(
    checkpoint: Checkpoint, closing: ClosingPhase, statistics: ForwardStatistics | None
) -> None:
    """Restore the closing phase and the statistics from a checkpoint."""
    closing.restore(checkpoint.closing.read())
    # the file has the sums over all ranks, so one rank takes them and the others start at zero
    if statistics is not None and distributed.is_main():
        for name, tensor in torch.load(checkpoint.statistics.path).items():
            statistics.tensors()[name].copy_(tensor)


def _result(
    trainer: Trainer, model: nn.Module, closing: ClosingPhase, task: RecoveryTask
) -> RecoveryResult:
    """Return what the finished training took, and its optimizer state if the task asks for it."""
    steps = trainer.state.global_step
    optimizer: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate's wrap
    kept = optimizer_state.take(optimizer, model) if task.options.keep_optimizer_state else None
    return RecoveryResult(
        num_steps=steps,
        num_tokens=round(task.num_tokens * steps / closing.num_steps),
        checks=closing.checks,
        optimizer_state=kept,
    )


def _tokens_per_step(tokens: "PackedTokens", global_batch: int) -> float:
    """Mean tokens in a global batch; sequences may be padded, so fewer than their length."""
    return tokens.num_tokens / len(tokens) * global_batch


def _training_arguments(model: "PreTrainedModel", task: RecoveryTask) -> TrainingArguments:
    """Arguments for ``task``; the learning rate is the peak, ``TextTrainer`` has the schedule."""
    micro_batch, accumulation = batch_split(task.trainer)
    arguments = TrainingArguments(
        max_steps=num_steps(task.tokens, task.num_tokens, task.trainer.global_batch),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=task.trainer.learning_rate,
        train_sampling_strategy="sequential",  # Sequences has shuffled already
        **common_arguments(model, task),
    )
    # without a launcher, several visible GPUs would mean nn.DataParallel
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments

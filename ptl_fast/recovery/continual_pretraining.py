"""Continual pre-training: next-token prediction on the round's part of the data."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ptl_fast.base import distributed
from ptl_fast.model.families import needs_one_row
from ptl_fast.recovery import optimizer_state
from ptl_fast.recovery import trainer as trainer_module
from ptl_fast.recovery.learning_rate import learning_rate
from ptl_fast.recovery.task import Lesson, Watch
from ptl_fast.recovery.token_budget import Closing, Spending, Spent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from ptl_fast.config.config import Config
    from ptl_fast.data.packing import PackedTokens

WATCHED, CLOSING = "watched.pt", "closing.json"


class Teaching(Protocol):
    """What changes the loss (ptl_fast.recovery.distillation.loss has it)."""

    def prepare(self) -> None:
        """Called before training, and not where the round does not train."""

    def example(self, row: int) -> dict[str, Tensor]:
        """What the loss needs to know of a sequence; it joins the training example."""

    def teach(self, model: nn.Module, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        """Take what ``example`` gave out of a batch; inside, the model's loss is the changed one."""


def cpt(
    model: "PreTrainedModel", lesson: Lesson, config: "Config", teaching: Teaching | None = None
) -> Spent:
    """Next-token prediction on ``lesson.num_tokens`` tokens, or fewer as ``lesson.spending`` says,
    in place.

    The sequences come in the same order on any number of ranks. Checkpoints go to
    ``lesson.folder``; where it holds one, training goes on from there. The weights' type stays;
    without DeepSpeed, half-precision weights train as float32 under autocast. A watch counts the
    last ``config.calibration_tokens``, or all of the closing where a round that ended early has a
    shorter one.

    Raises:
        ValueError: the loss is NaN or infinite (names the step), or the batch does not divide among
            the ranks.
    """
    tokens, spending, dtype = lesson.tokens, lesson.spending, model.dtype
    closing = Closing(
        num_steps(tokens, lesson.num_tokens, config),
        _tokens_per_step(tokens, config),
        spending.held_out,
    )
    checkpoint = trainer_module.newest_checkpoint(lesson.folder)
    if checkpoint is None and spending.held_out is not None:
        closing.note(0, distributed.agree(spending.held_out.nll()))
        if closing.begins == 0:  # what pruning did not hurt, training would only move
            return Spent(
                checks=closing.checks, moments=spending.moments if spending.keep_moments else None
            )
    if teaching is not None:
        teaching.prepare()
    arguments = _training_arguments(
        model, lesson, config
    )  # after the teacher is gone: with DeepSpeed they spread what is loaded
    autocast = partial(torch.autocast, model.device.type, dtype, enabled=dtype != torch.float32)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(lesson.log_folder)
    close = _Close(closing, spending, lesson.watch, autocast)
    patched = (
        trainer_module.unpatched_afterwards(model) if config.liger else contextlib.nullcontext()
    )
    with trainer_module.borrowed(model, arguments.deepspeed is not None), patched:
        trainer = RoundTrainer(
            lesson.watch,
            close,
            learning_rate(spending, closing),
            spending.moments,
            teaching,
            model=model,
            args=arguments,
            train_dataset=Sequences(
                tokens, arguments.max_steps * config.global_batch, config.seed, teaching
            ),
            data_collator=one_row if needs_one_row(model) else stack,
            callbacks=_callbacks(lesson, close, config),
        )
        trainer.remove_callback(PrinterCallback)
        if checkpoint is not None:
            _restore(Path(checkpoint), closing, lesson.watch)
        trainer_module.run(trainer, checkpoint, model)
        spent = _spent(trainer, model, closing, lesson.num_tokens, spending.keep_moments)
        trainer_module.tear_down(trainer, model)
    return spent


def _callbacks(lesson: Lesson, close: "_Close", config: "Config") -> list[TrainerCallback]:
    closing, watch = close.closing, lesson.watch
    callbacks: list[TrainerCallback] = [
        trainer_module.Progress(lesson.name),
        trainer_module.StopAtNan(),
        close,
        trainer_module.Checkpoints(
            lesson.folder,
            config.checkpoint_minutes * 60,
            lambda: closing.ends,
            partial(_keep, closing=closing, watch=watch),
        ),
    ]
    if watch is not None:
        callbacks.append(
            _WatchTheEnd(
                watch, closing, num_steps(lesson.tokens, config.calibration_tokens, config)
            )
        )
    return callbacks


def num_steps(tokens: "PackedTokens", num_tokens: int, config: "Config") -> int:
    """Optimizer steps that train on about ``num_tokens`` tokens of these sequences."""
    return max(1, round(num_tokens / _tokens_per_step(tokens, config)))


def examples(tokens: "PackedTokens", num_tokens: int, config: "Config") -> Tensor:
    """Which sequences training on about ``num_tokens`` tokens reads, in its order."""
    return Sequences(
        tokens, num_steps(tokens, num_tokens, config) * config.global_batch, config.seed
    ).order


def last_part(
    parts: Sequence["PackedTokens"], steps: Sequence[int], config: "Config"
) -> "PackedTokens":
    """The last of the parts, followed by the sequences that training on the parts before did not
    come to.

    ``steps`` are the optimizer steps on each part before; the second part already had what was left
    of the first, and so on."""
    tokens = parts[0]
    for part, num_steps in zip(parts[1:], steps, strict=True):
        order = Sequences(tokens, len(tokens), config.seed).order
        tokens = part.followed_by(tokens.rows(order[num_steps * config.global_batch :]))
    return tokens


class Sequences(Dataset):
    """``num_sequences`` packed sequences in a seeded order, epoch after epoch where there are
    fewer.
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


class RoundTrainer(Trainer):
    """Trainer with our learning rate, a penalty, and an optimizer that may begin warm.

    Its examples carry a mask: not for the model, but for a watch.
    """

    def __init__(
        self,
        watch: Watch | None,
        close: "_Close",
        learning_rate: Callable[[int], float],
        moments: "optimizer_state.Moments | None",
        teaching: Teaching | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.watch, self.close, self.learning_rate, self.moments = (
            watch,
            close,
            learning_rate,
            moments,
        )
        self.teaching = teaching

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.moments is not None:
            assert isinstance(self.model, nn.Module)
            optimizer_state.give(optimizer, self.model, self.moments)
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
        if self.watch is not None and self.watch.enabled:
            self.watch.expect(mask)
        assert isinstance(self.model, nn.Module)
        with (
            self.teaching.teach(self.model, inputs) if self.teaching is not None else nullcontext()
        ):
            loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if self.close.penalty is None:
            return loss
        penalty = self.close.penalty()
        self.close.penalty_value = penalty.detach()
        # a loss that is already divided by the whole step's tokens is summed over the step's
        # forward passes, and others averaged
        is_summed = self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None
        return loss + penalty / (self.current_gradient_accumulation_steps if is_summed else 1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.close.penalty_value is not None and "loss" in logs:
            logs["penalty"] = self.close.penalty_value.item()
        super().log(logs, *args, **kwargs)


class _Close(TrainerCallback):
    """Measures whether the round has recovered, begins the penalty of --anticipate, and ends the
    round.
    """

    def __init__(
        self, closing: Closing, spending: Spending, watch: Watch | None, autocast: Callable[[], Any]
    ) -> None:
        self.closing, self.held_out, self.watch, self.autocast = (
            closing,
            spending.held_out,
            watch,
            autocast,
        )
        self.anticipate = spending.anticipate
        self.penalty: Callable[[], Tensor] | None = None
        self.penalty_value: Tensor | None = None

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        if self.anticipate is not None and state.global_step >= self.closing.begins:
            with self.autocast():
                self.penalty = self.anticipate()
            self.anticipate = None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        if self.closing.needs_check(state.global_step):
            assert self.held_out is not None
            if self.watch is not None:
                self.watch.enabled = False  # until the next step begins
            with self.autocast():
                nll = self.held_out.nll()
            self.closing.note(state.global_step, distributed.agree(nll))
        if state.global_step >= self.closing.ends:
            control.should_training_stop = True


class _WatchTheEnd(TrainerCallback):
    def __init__(self, watch: Watch, closing: Closing, num_steps: int) -> None:
        self.watch, self.closing, self.num_steps = watch, closing, num_steps

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        self.watch.enabled = state.global_step >= self.closing.ends - self.num_steps


def _keep(checkpoint: Path, closing: Closing, watch: Watch | None) -> None:
    """Write to a checkpoint what ``_restore`` reads."""
    if watch is not None:
        total = watch.over_ranks()
        if distributed.is_main():
            torch.save(total, checkpoint / WATCHED)
    if distributed.is_main():
        (checkpoint / CLOSING).write_text(json.dumps(closing.state()))


def _restore(checkpoint: Path, closing: Closing, watch: Watch | None) -> None:
    """Read what a checkpoint keeps besides the Trainer's own state."""
    closing.restore(json.loads((checkpoint / CLOSING).read_text()))
    if (
        watch is not None and distributed.is_main()
    ):  # the sums of all ranks then, however many they were
        for name, tensor in torch.load(checkpoint / WATCHED).items():
            watch.tensors()[name].copy_(tensor)


def _spent(
    trainer: Trainer, model: nn.Module, closing: Closing, num_tokens: int, keep_moments: bool
) -> Spent:
    """What the finished training took, and its optimizer's state where that is wanted."""
    steps = trainer.state.global_step
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    return Spent(
        num_steps=steps,
        num_tokens=round(num_tokens * steps / closing.num_steps),
        checks=closing.checks,
        moments=optimizer_state.take(optimizer, model) if keep_moments else None,  # type: ignore[arg-type]
    )


def _tokens_per_step(tokens: "PackedTokens", config: "Config") -> float:
    return tokens.num_tokens / len(tokens) * config.global_batch


def _training_arguments(
    model: "PreTrainedModel", lesson: Lesson, config: "Config"
) -> TrainingArguments:
    micro_batch, accumulation = trainer_module.batch_split(config)
    arguments = TrainingArguments(
        max_steps=num_steps(lesson.tokens, lesson.num_tokens, config),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        train_sampling_strategy="sequential",
        **trainer_module.common_arguments(model, lesson.folder, config),
    )
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # without a launcher, several visible GPUs would mean nn.DataParallel
    return arguments


def stack(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def one_row(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.cat([example[name] for example in examples]).unsqueeze(0)
        for name in examples[0]
    }

"""Recovery: the training that follows each pruning. The trainers are transformers', with DeepSpeed where asked for."""

import gc
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ptl_fast import moments, ranks
from ptl_fast.budget import Closing, Spending, Spent, learning_rate
from ptl_fast.config import deepspeed_file
from ptl_fast.families import needs_one_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from ptl_fast.config import Config
    from ptl_fast.data import PackedTokens

COMPLETE = "complete"
WATCHED, CLOSING = "watched.pt", "closing.json"


class Watch(Protocol):
    """What counts the forward passes of training (ptl_fast.calibrate has it)."""

    enabled: bool

    def expect(self, mask: Tensor) -> None:
        """Say which tokens of the next forward pass count."""

    def tensors(self) -> dict[str, Tensor]:
        """This rank's statistics."""

    def over_ranks(self) -> dict[str, Tensor]:
        """All ranks' statistics as one, which a checkpoint keeps."""


def none(
    model: "PreTrainedModel",
    tokens: "PackedTokens",
    num_tokens: int,
    config: "Config",
    folder: Path,
    watch: Watch | None = None,
    spending: Spending | None = None,
) -> Spent:
    """No recovery: pruning alone."""
    return Spent(moments=spending.moments if spending is not None and spending.keep_moments else None)


def cpt(
    model: "PreTrainedModel",
    tokens: "PackedTokens",
    num_tokens: int,
    config: "Config",
    folder: Path,
    watch: Watch | None = None,
    spending: Spending | None = None,
) -> Spent:
    """Continual pre-training on ``num_tokens`` tokens, or fewer as ``spending`` says: next-token prediction, in place.

    The sequences come in the same order on any number of ranks. Checkpoints go to ``folder``; where it holds one, training goes
    on from there. The weights' type stays; without DeepSpeed, half-precision weights train as float32 under autocast. A watch
    counts the last ``config.calibration_tokens``, or all of the closing where a round that ended early has a shorter one.

    Raises:
        ValueError: the loss is NaN or infinite (names the step), or the batch does not divide among the ranks.
    """
    spending = spending or Spending()
    dtype, use_cache = model.dtype, model.config.use_cache
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    arguments = _training_arguments(model, tokens, num_tokens, config, folder)
    closing = Closing(arguments.max_steps, _tokens_per_step(tokens, config), spending.held_out)
    autocast = partial(torch.autocast, model.device.type, dtype, enabled=dtype != torch.float32)
    if dtype != torch.float32 and arguments.deepspeed is None:
        _renew_parameters_(model, torch.float32)  # an update of 1e-5 vanishes in bf16's 8 bits of mantissa
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parent.parent / "log" / folder.parent.name)
    progress, close = _Progress(folder.parent.name), _Close(closing, spending, watch, autocast)
    callbacks = [progress, _StopAtNan(), close, _Checkpoints(folder, config.checkpoint_minutes * 60, closing, watch)]
    if watch is not None:
        callbacks.append(_WatchTheEnd(watch, closing, num_steps(tokens, config.calibration_tokens, config)))
    trainer = _Trainer(
        watch,
        close,
        learning_rate(spending, closing),
        spending.moments,
        model=model,
        args=arguments,
        train_dataset=_Sequences(tokens, arguments.max_steps * config.global_batch, config.seed),
        data_collator=_one_row if needs_one_row(model) else _stack,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = _newest_checkpoint(folder)
    if checkpoint is not None:
        _restore(Path(checkpoint), closing, watch)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        progress.bar.close()
    spent = _spent(trainer, model, closing, num_tokens, spending.keep_moments)
    _tear_down(trainer, model)
    _renew_parameters_(model, dtype)
    for name, buffer in buffers.items():  # DeepSpeed casts them too, and rotary frequencies must stay float32
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)
    model.config.use_cache = use_cache  # Trainer turns it off, and the saved config would keep that
    return spent


RECOVERIES = {"none": none, "cpt": cpt}


def batch_split(config: "Config") -> tuple[int, int]:
    """(sequences in a rank's forward pass, forward passes in a step): together with the ranks, the global batch.

    Raises:
        ValueError: the global batch does not divide.
    """
    micro_batch = min(config.micro_batch, max(1, config.global_batch // ranks.world_size()))
    accumulation, rest = divmod(config.global_batch, micro_batch * ranks.world_size())
    if rest:
        raise ValueError(
            f"--global-batch {config.global_batch} is no multiple of --micro-batch {micro_batch} times"
            f" {ranks.world_size()} ranks; change one of them"
        )
    return micro_batch, accumulation


def num_steps(tokens: "PackedTokens", num_tokens: int, config: "Config") -> int:
    """Optimizer steps that train on about ``num_tokens`` tokens of these sequences."""
    return max(1, round(num_tokens / _tokens_per_step(tokens, config)))


def last_part(parts: Sequence["PackedTokens"], steps: Sequence[int], config: "Config") -> "PackedTokens":
    """The last of the parts, followed by the sequences that training on the parts before did not come to.

    ``steps`` are the optimizer steps on each part before; the second part already had what was left of the first, and so on.
    """
    tokens = parts[0]
    for part, num_steps in zip(parts[1:], steps, strict=True):
        order = _Sequences(tokens, len(tokens), config.seed).order
        tokens = part.followed_by(tokens.rows(order[num_steps * config.global_batch :]))
    return tokens


class _Sequences(Dataset):
    """``num_sequences`` packed sequences in a seeded order, epoch after epoch where there are fewer."""

    def __init__(self, tokens: "PackedTokens", num_sequences: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_epochs = math.ceil(num_sequences / len(tokens))
        self.tokens = tokens
        self.order = torch.cat([torch.randperm(len(tokens), generator=generator) for _ in range(num_epochs)])[:num_sequences]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.tokens[int(self.order[index])]


class _Trainer(Trainer):
    """Trainer with our learning rate, a penalty, and an optimizer that may begin warm.

    Its examples carry a mask: not for the model, but for a watch.
    """

    def __init__(
        self,
        watch: Watch | None,
        close: "_Close",
        learning_rate: Callable[[int], float],
        moments: "moments.Moments | None",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.watch, self.close, self.learning_rate, self.moments = watch, close, learning_rate, moments

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.moments is not None:
            assert isinstance(self.model, nn.Module)
            moments.give(optimizer, self.model, self.moments)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self.lr_scheduler = LambdaLR(optimizer, self.learning_rate)
        return self.lr_scheduler

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.pop("mask")
        if self.watch is not None and self.watch.enabled:
            self.watch.expect(mask)
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if self.close.penalty is None:
            return loss
        penalty = self.close.penalty()
        self.close.penalty_value = penalty.detach()
        # a loss that is already divided by the whole step's tokens is summed over the step's forward passes, and others averaged
        is_summed = self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None
        return loss + penalty / (self.current_gradient_accumulation_steps if is_summed else 1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.close.penalty_value is not None and "loss" in logs:
            logs["penalty"] = self.close.penalty_value.item()
        super().log(logs, *args, **kwargs)


class _Close(TrainerCallback):
    """Measures whether the round has recovered, begins the penalty of --anticipate, and ends the round."""

    def __init__(self, closing: Closing, spending: Spending, watch: Watch | None, autocast: Callable[[], Any]) -> None:
        self.closing, self.held_out, self.watch, self.autocast = closing, spending.held_out, watch, autocast
        self.anticipate = spending.anticipate
        self.penalty: Callable[[], Tensor] | None = None
        self.penalty_value: Tensor | None = None

    def on_step_begin(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        if self.anticipate is not None and state.global_step >= self.closing.begins:
            with self.autocast():
                self.penalty = self.anticipate()
            self.anticipate = None

    def on_step_end(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        if self.closing.needs_check(state.global_step):
            assert self.held_out is not None
            if self.watch is not None:
                self.watch.enabled = False  # until the next step begins
            with self.autocast():
                nll = self.held_out.nll()
            self.closing.note(state.global_step, ranks.agree(nll))
        if state.global_step >= self.closing.ends:
            control.should_training_stop = True


class _WatchTheEnd(TrainerCallback):
    def __init__(self, watch: Watch, closing: Closing, num_steps: int) -> None:
        self.watch, self.closing, self.num_steps = watch, closing, num_steps

    def on_step_begin(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        self.watch.enabled = state.global_step >= self.closing.ends - self.num_steps


class _Progress(TrainerCallback):
    """One bar with the current loss."""

    def __init__(self, description: str) -> None:
        self.description, self.bar = description, tqdm(disable=True)

    def on_train_begin(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        description = f"{self.description}: recover"
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=description, leave=False, disable=not ranks.is_main()
        )

    def on_log(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.bar.set_postfix(loss=kwargs["logs"]["loss"], refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        self.bar.close()


class _StopAtNan(TrainerCallback):
    def on_log(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        loss = float(kwargs["logs"].get("loss", 0.0))
        if not math.isfinite(loss):
            raise ValueError(
                f"recovery's loss is {loss} at step {state.global_step} of {state.max_steps}; lower --learning-rate, or prune"
                " less in a round (more --rounds)"
            )


class _Checkpoints(TrainerCallback):
    """Asks for a checkpoint when enough time has passed, marks it complete once it is on disk, and removes the ones before."""

    def __init__(self, folder: Path, seconds: float, closing: Closing, watch: Watch | None) -> None:
        self.folder, self.seconds, self.closing, self.watch = folder, seconds, closing, watch
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        due = time.monotonic() - self.last >= self.seconds and state.global_step < self.closing.ends
        control.should_save = ranks.agree(due)

    def on_save(self, args: TrainingArguments, state: "TrainerState", control: "TrainerControl", **kwargs: Any) -> None:
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if self.watch is not None:
            total = self.watch.over_ranks()
            if ranks.is_main():
                torch.save(total, checkpoint / WATCHED)
        if ranks.is_main():
            (checkpoint / CLOSING).write_text(json.dumps(self.closing.state()))
        ranks.barrier()
        if ranks.is_main():
            (checkpoint / COMPLETE).touch()
            for other in self.folder.glob("checkpoint-*"):
                if other != checkpoint:
                    shutil.rmtree(other)
        ranks.barrier()
        self.last = time.monotonic()


def _restore(checkpoint: Path, closing: Closing, watch: Watch | None) -> None:
    """Read what a checkpoint keeps besides the Trainer's own state."""
    closing.restore(json.loads((checkpoint / CLOSING).read_text()))
    if watch is not None and ranks.is_main():  # the sums of all ranks then, however many they were
        for name, tensor in torch.load(checkpoint / WATCHED).items():
            watch.tensors()[name].copy_(tensor)


def _spent(trainer: Trainer, model: nn.Module, closing: Closing, num_tokens: int, keep_moments: bool) -> Spent:
    """What the finished training took, and its optimizer's state where that is wanted."""
    steps = trainer.state.global_step
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    return Spent(
        num_steps=steps,
        num_tokens=round(num_tokens * steps / closing.num_steps),
        checks=closing.checks,
        moments=moments.take(optimizer, model) if keep_moments else None,  # type: ignore[arg-type]
    )


def _tokens_per_step(tokens: "PackedTokens", config: "Config") -> float:
    return tokens.num_tokens / len(tokens) * config.global_batch


def _training_arguments(
    model: "PreTrainedModel", tokens: "PackedTokens", num_tokens: int, config: "Config", folder: Path
) -> TrainingArguments:
    on_cpu = model.device.type == "cpu"
    micro_batch, accumulation = batch_split(config)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps(tokens, num_tokens, config),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=["tensorboard"],
        seed=config.seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        ddp_timeout=int(ranks.TIMEOUT.total_seconds()),
        deepspeed=_deepspeed_settings(config.deepspeed, on_cpu),
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # without a launcher, several visible GPUs would mean nn.DataParallel
    return arguments


def _deepspeed_settings(name: str | None, on_cpu: bool) -> dict | None:
    """The JSON of --deepspeed. Without a launcher, one GPU is a group of one; one CPU process trains without DeepSpeed."""
    if name is None:
        return None
    if "WORLD_SIZE" not in os.environ:
        if on_cpu:
            warnings.warn("--deepspeed has no use in one process on a CPU: recovery runs without it", stacklevel=2)
            return None
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    return json.loads(deepspeed_file(name).read_text())


def _stack(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def _one_row(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([example[name] for example in examples]).unsqueeze(0) for name in examples[0]}


def _newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None."""
    complete = ranks.agree([str(marker.parent) for marker in folder.glob(f"checkpoint-*/{COMPLETE}")])
    return max(complete, key=lambda path: int(path.rsplit("-", 1)[1]), default=None)


def _tear_down(trainer: Trainer, model: "PreTrainedModel") -> None:
    """Undo everything that training attached to the model, so that the next round starts from plain weights."""
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.destroy()  # type: ignore[operator]
    trainer.accelerator.free_memory()
    # accelerate wraps a model's forward in autocast, and would take a model with this mark for wrapped
    for attribute in ("_is_accelerate_prepared", "forward"):
        model.__dict__.pop(attribute, None)
    model.gradient_checkpointing_disable()
    model.disable_input_require_grads()
    model.zero_grad(set_to_none=True)
    model.eval()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _renew_parameters_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give each parameter a new object, memory and type: optimizers leave hooks on them and views of flat buffers in them."""
    renewed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in renewed:
                renewed[id(parameter)] = nn.Parameter(parameter.detach().to(dtype, copy=True), parameter.requires_grad)
            setattr(module, name, renewed[id(parameter)])

"""The trainings that benchmarks.recovery.throughput compares: ours, as a round's recovery runs it,
and TRL's. Every step of them is timed.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    trainer,
)

from benchmarks.harness import clock
from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.config.trainer import TrainerSettings
from ptl_fast.data import packing as packing_module
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.recovery import continual_pretraining
from ptl_fast.recovery.task import RecoveryTask
from ptl_kernels import fused_ffns

SEED = 0


@dataclass
class TimedSteps:
    """What one training did."""

    seconds: list[float] = field(default_factory=list)
    """By step."""
    losses: list[float] = field(default_factory=list)
    """By step."""
    tokens_per_step: float = 0.0
    """The mean; padding is not counted."""


class StepTimer(TrainerCallback):
    """Notes when steps begin and end."""

    def __init__(self, steps: TimedSteps, device: torch.device) -> None:
        self.steps, self.device, self.start = steps, device, 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = clock.now(self.device)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.seconds.append(clock.now(self.device) - self.start)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.steps.losses.append(float(kwargs["logs"]["loss"]))


@contextlib.contextmanager
def step_times(device: torch.device) -> Iterator[TimedSteps]:
    """Time the steps of the Trainer that is made inside, by our code or by TRL's."""
    steps = TimedSteps()
    # every Trainer starts with transformers' default callbacks, also one that other code makes
    callbacks: list[Any] = trainer.DEFAULT_CALLBACKS
    callbacks.append(StepTimer(steps, device))
    try:
        yield steps
    finally:
        callbacks.pop()


@dataclass(frozen=True)
class TrainingSetup:
    """What every training trains, on what, and for how many steps."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    documents: list[list[int]]
    sequence_length: int
    batch: int
    """Packed sequences in a step."""
    num_steps: int

    def settings(self, **settings: Any) -> TrainerSettings:
        """Settings of our own training."""
        sizes = {"global_batch": self.batch, "micro_batch": self.batch}
        return TrainerSettings(
            **{
                **sizes,
                "gradient_checkpointing": False,
                "checkpoint_minutes": 1e6,  # never: a checkpoint would be in a step's time
                **settings,
            }
        )

    def packed(self) -> packing_module.PackedTokens:
        """The documents as a round packs them."""
        return packing_module.pack(
            self.documents, self.sequence_length, packing_module.padding_token(self.tokenizer)
        )

    def documents_per_step(self) -> int:
        """The number of documents that hold about as many tokens as a step of packed sequences."""
        mean = sum(map(len, self.documents)) / len(self.documents)
        return max(1, round(self.batch * self.packed().num_tokens / len(self.packed()) / mean))


def train_ours(
    setup: TrainingSetup,
    model: PreTrainedModel,
    fused: bool = False,
    packing: bool = True,
    **settings: Any,
) -> TimedSteps:
    """Continual pre-training as a round's recovery runs it; more settings are the trainer's."""
    tokens, batch = (
        (setup.packed(), setup.batch)
        if packing
        else (unpacked_documents(setup), setup.documents_per_step())
    )
    trainer = setup.settings(global_batch=batch, micro_batch=batch, fused_ffn=fused, **settings)
    order = continual_pretraining.Sequences(tokens, setup.num_steps * batch, SEED).order
    per_step = float(tokens.rows(order).num_tokens / setup.num_steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if fused:
            stack.enter_context(fused_ffns(feed_forwards(model, find_family(model))))
        task = RecoveryTask(
            tokens=tokens,
            num_tokens=round(setup.num_steps * batch * tokens.num_tokens / len(tokens)),
            name="ours",
            folder=RecoveryFolder(Path(folder) / "recovery"),
            log_folder=Path(folder) / "log",
            tokenizer=setup.tokenizer,
            trainer=trainer,
            seed=SEED,
            has_own_ffn=fused,
        )
        steps = stack.enter_context(step_times(model.device))
        continual_pretraining.train(model, task)
    steps.tokens_per_step = per_step
    return steps


def unpacked_documents(setup: TrainingSetup) -> packing_module.PackedTokens:
    """Documents without packing: each in a row of its own, padded to the longest."""
    pieces = [document[: setup.sequence_length] for document in setup.documents]
    length, pad = max(map(len, pieces)), packing_module.padding_token(setup.tokenizer)
    input_ids = torch.tensor([[*piece, *[pad] * (length - len(piece))] for piece in pieces])
    mask = torch.tensor([[True] * len(piece) + [False] * (length - len(piece)) for piece in pieces])
    return packing_module.PackedTokens(
        input_ids, torch.arange(length).expand_as(input_ids).where(mask, 0), mask
    )


def train_trl(setup: TrainingSetup, model: PreTrainedModel, liger: bool = False) -> TimedSteps:
    """trl's SFTTrainer on the documents, already tokenized."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokens_of_steps: list[int] = []

    class Counting(SFTTrainer):
        def training_step(
            self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> Any:
            # a batch without padding has no mask
            tokens_of_steps.append(
                int(inputs["attention_mask"].sum())
                if "attention_mask" in inputs
                else inputs["input_ids"].numel()
            )
            return super().training_step(model, inputs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as folder, step_times(model.device) as steps:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=setup.num_steps,
            per_device_train_batch_size=setup.documents_per_step(),
            max_length=setup.sequence_length,
            packing=False,
            learning_rate=setup.settings().learning_rate,
            gradient_checkpointing=False,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type != "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_liger_kernel=liger,
            seed=SEED,
        )
        rows = Dataset.from_list([{"input_ids": list(document)} for document in setup.documents])
        plain = Counting(
            model=model, args=arguments, train_dataset=rows, processing_class=setup.tokenizer
        )
        plain.remove_callback(PrinterCallback)
        plain.train()
    steps.tokens_per_step = sum(tokens_of_steps) / max(1, len(tokens_of_steps))
    return steps

"""A recovery on small random data, and killing it in the middle."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from ptl_fast.config.config import Config
from ptl_fast.data import packing
from ptl_fast.data.documents import Document
from ptl_fast.recovery import continual_pretraining, trainer
from ptl_fast.recovery.registry import RECOVERIES, Recovery
from ptl_fast.recovery.task import (
    ForwardStatistics,
    RecoveryResult,
    RecoveryTask,
    TrainingOptions,
)
from ptl_fast.run.checks import check_methods
from support.models import DEMO_MODEL


def packed(num_documents: int = 60, seed: int = 5) -> packing.PackedTokens:
    """Documents of a pattern that a model learns fast, in sequences of 32 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return packing.pack(
        [
            [2, 3, 4, 5] * int(torch.randint(1, 5, (1,), generator=generator))
            for _ in range(num_documents)
        ],
        32,
        1,
    )


def config(**settings: Any) -> Config:
    """Settings by their flat names, on top of those of a small training on the CPU."""
    shape = {"global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    return Config.from_flat(
        **{"model": "x", "data": "x", "learning_rate": 1e-2, "device": "cpu", **shape, **settings}
    )


def task(
    tokens: packing.PackedTokens,
    num_tokens: int,
    settings: Config,
    folder: Path,
    problems: Sequence[Document] = (),
    options: TrainingOptions | None = None,
    statistics: ForwardStatistics | None = None,
) -> RecoveryTask:
    """What a round's recovery is given, with the settings' groups."""
    options = replace(
        options or TrainingOptions(),
        statistics=statistics,
        statistics_tokens=settings.score.calibration_tokens,
    )
    return RecoveryTask(
        tokens=tokens,
        num_tokens=num_tokens,
        name=folder.parent.name,
        folder=folder,
        log_folder=folder.parent / "log",
        tokenizer=AutoTokenizer.from_pretrained(DEMO_MODEL),
        model=settings.model,
        trainer=settings.trainer,
        distill=settings.distill,
        grpo=settings.grpo,
        seed=settings.run.seed,
        problems=list(problems),
        options=options,
    )


def train(
    model: PreTrainedModel,
    tokens: packing.PackedTokens,
    num_tokens: int,
    settings: Config,
    folder: Path,
    statistics: ForwardStatistics | None = None,
    options: TrainingOptions | None = None,
) -> RecoveryResult:
    """Continual pre-training of one round."""
    given = task(tokens, num_tokens, settings, folder, options=options, statistics=statistics)
    return continual_pretraining.train(model, given)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The type of the parameters alone, as from_pretrained does: rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


class Killed(Exception):
    """Ends a training as abruptly as a signal would."""


def killed_at_step(number: int, train: Callable[[], Any]) -> None:
    """Train until this step begins."""

    def die(self: object, args: object, state: Any, control: object, **kwargs: object) -> None:
        if state.global_step == number:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.StopAtNan, "on_step_begin", die)
        with pytest.raises(Killed):
            train()


def check(settings: Config) -> None:
    """All checks that need neither model nor data."""
    settings.check()
    check_methods(settings)


def with_training(name: str, train: Callable[..., RecoveryResult]) -> Recovery:
    """The recovery of this name with another training."""
    return replace(RECOVERIES[name], train=train)

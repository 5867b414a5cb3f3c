"""A recovery on small random data, and killing it in the middle."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.config.config import Config
from ptl_fast.data import packing
from ptl_fast.data.documents import Document
from ptl_fast.demo.problems import generate
from ptl_fast.recovery import continual_pretraining, trainer
from ptl_fast.recovery.registry import RECOVERIES, Recovery
from ptl_fast.recovery.task import (
    ForwardStatistics,
    HeldOutText,
    RecoveryResult,
    RecoveryTask,
    TrainingOptions,
)
from support.models import DEMO_MODEL
from support.settings import settings

PROBLEMS = [
    Document(problem["question"], problem["answer"]) for problem in generate(24, 3, "training")
]


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


def config(**values: Any) -> Config:
    """Settings by their flat names, on top of those of a small training on the CPU."""
    shape = {"global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    return settings(**{"learning_rate": 1e-2, "device": "cpu", **shape, **values})


def grpo_config(**values: Any) -> Config:
    """Settings of four steps of eight short rollouts."""
    grpo = {
        "grpo_steps": 4,
        "grpo_prompts": 2,
        "grpo_rollouts": 4,
        "grpo_response_tokens": 6,
        "grpo_prompt_tokens": 64,
        "grpo_learning_rate": 1e-2,
    }
    own = {"micro_batch": 4, "gradient_checkpointing": False, "checkpoint_minutes": 0.0}
    return config(**{"recovery": "grpo", **own, **grpo, **values})


def opd_config(original: str, **values: Any) -> Config:
    """Settings of four steps of eight short answers, judged by this model."""
    opd = {
        "opd_steps": 4,
        "opd_prompts": 8,
        "opd_max_tokens": 8,
        "opd_prompt_tokens": 64,
        "opd_learning_rate": 1e-2,
    }
    own = {"micro_batch": 8, "gradient_checkpointing": False, "checkpoint_minutes": 0.0}
    return config(**{"recovery": "opd", "teacher": original, **own, **opd, **values})


def task(
    tokens: packing.PackedTokens,
    num_tokens: int,
    given: Config,
    folder: Path,
    problems: Sequence[Document] = (),
    options: TrainingOptions | None = None,
    statistics: ForwardStatistics | None = None,
) -> RecoveryTask:
    """What a round's recovery is given, with the settings' groups."""
    options = replace(
        options or TrainingOptions(),
        statistics=statistics,
        statistics_tokens=given.score.calibration_tokens,
    )
    return RecoveryTask(
        tokens=tokens,
        num_tokens=num_tokens,
        name=folder.parent.name,
        folder=RecoveryFolder(folder),
        log_folder=folder.parent / "log",
        tokenizer=AutoTokenizer.from_pretrained(DEMO_MODEL),
        model=given.model,
        trainer=given.trainer,
        distill=given.distill,
        opd=given.opd,
        grpo=given.grpo,
        seed=given.run.seed,
        problems=list(problems),
        options=options,
    )


def problem_task(given: Config, folder: Path) -> RecoveryTask:
    """What a round's recovery on problems is given."""
    return task(packed(), 500, given, folder, problems=PROBLEMS)


def train(
    model: PreTrainedModel,
    tokens: packing.PackedTokens,
    num_tokens: int,
    given: Config,
    folder: Path,
    statistics: ForwardStatistics | None = None,
    options: TrainingOptions | None = None,
) -> RecoveryResult:
    """Continual pre-training of one round."""
    own = task(tokens, num_tokens, given, folder, options=options, statistics=statistics)
    return continual_pretraining.train(model, own)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The parameters' type alone, as from_pretrained does: rotary frequencies stay float32."""
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


def train_steps(
    model: PreTrainedModel,
    folder: Path,
    num_steps: int,
    options: TrainingOptions,
    **values: object,
) -> tuple[RecoveryResult, list[dict]]:
    """Continual pre-training of so many steps, and what it logged after each."""
    logs: list[dict] = []

    def note(self: object, args: object, state: object, control: object, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            logs.append(dict(kwargs["logs"]))

    tokens = packed()
    num_tokens = round(num_steps * tokens.num_tokens / len(tokens) * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.StopAtNan, "on_log", note)
        spent = train(
            model, tokens, num_tokens, config(**values), folder / "recovery", None, options
        )
    return spent, logs


def held_out(*values: float, recovered: float = 1.0, num_tokens: int = 1) -> HeldOutText:
    """Held-out text whose NLLs come one after the other."""
    return HeldOutText(nll=partial(next, iter(values)), num_tokens=num_tokens, recovered=recovered)


def with_training(name: str, train: Callable[..., RecoveryResult]) -> Recovery:
    """The recovery of this name with another training."""
    return replace(RECOVERIES[name], train=train)

"""A recovery on small random data, and killing it in the middle."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from ptl_fast.config.config import Config
from ptl_fast.data import packing
from ptl_fast.recovery import continual_pretraining, trainer
from ptl_fast.recovery.task import Lesson, Watch
from ptl_fast.recovery.token_budget import Spending, Spent
from support.models import DEMO_MODEL


def packed(num_documents: int = 60, seed: int = 5) -> packing.PackedTokens:
    generator = torch.Generator().manual_seed(seed)
    return packing.pack(
        [
            [2, 3, 4, 5] * int(torch.randint(1, 5, (1,), generator=generator))
            for _ in range(num_documents)
        ],
        32,
        1,
    )


def config(**settings: object) -> Config:
    shape = {"global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    return Config(
        **{"model": "x", "data": "x", "learning_rate": 1e-2, "device": "cpu", **shape, **settings}
    )


def train(
    model: PreTrainedModel,
    tokens: packing.PackedTokens,
    num_tokens: int,
    settings: Config,
    folder: Path,
    watch: Watch | None = None,
    spending: Spending | None = None,
) -> Spent:
    """Continual pre-training of one round."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    lesson = Lesson(
        tokens=tokens,
        num_tokens=num_tokens,
        name=folder.parent.name,
        folder=folder,
        log_folder=folder.parent / "log",
        tokenizer=tokenizer,
        watch=watch,
        spending=spending or Spending(),
    )
    return continual_pretraining.cpt(model, lesson, settings)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The type of the parameters alone, as from_pretrained does: rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


class Killed(Exception):
    pass


def killed_at_step(number: int, train: Callable[[], None]) -> None:
    """Train until this step begins."""

    def die(self: object, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == number:  # type: ignore[attr-defined]
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.StopAtNan, "on_step_begin", die)
        with pytest.raises(Killed):
            train()

"""Recovery: the training that follows each pruning. One module a method; here is which there are,
and how several follow.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ptl_fast.base import distributed
from ptl_fast.config.config import NOT_ON_TEXT
from ptl_fast.recovery.continual_pretraining import cpt
from ptl_fast.recovery.distillation.loss import distill
from ptl_fast.recovery.token_budget import Spent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.config.config import Config
    from ptl_fast.recovery.task import Lesson

FINISHED = "finished.json"


def none(model: "PreTrainedModel", lesson: "Lesson", config: "Config") -> Spent:
    """No recovery: pruning alone."""
    return Spent(moments=lesson.spending.moments if lesson.spending.keep_moments else None)


def grpo(model: "PreTrainedModel", lesson: "Lesson", config: "Config") -> Spent:
    """Reinforcement learning; TRL is imported only where it is asked for."""
    from ptl_fast.recovery.grpo import train

    return train.grpo(model, lesson, config)


RECOVERIES: dict[str, Callable[["PreTrainedModel", "Lesson", "Config"], Spent]] = {
    "none": none,
    "cpt": cpt,
    "distill": distill,
    "grpo": grpo,
}


def recover(
    names: Sequence[str], model: "PreTrainedModel", lesson: "Lesson", config: "Config"
) -> Spent:
    """Recover by one method, or by several after another, of which each finished one is kept in the
    lesson's folder.

    Those that train on text share the round's tokens equally; all have the round's problems.
    """
    if len(names) == 1:
        return RECOVERIES[names[0]](model, lesson, config)
    num_on_text = sum(name not in NOT_ON_TEXT for name in names)
    parts = []
    for name in names:
        part = dataclasses.replace(
            lesson,
            num_tokens=lesson.num_tokens // max(1, num_on_text),
            folder=lesson.folder / name,
            log_folder=lesson.log_folder / name,
        )
        if distributed.agree((part.folder / FINISHED).exists()):
            parts.append(_load(part.folder, model))
            continue
        parts.append(RECOVERIES[name](model, part, config))
        if name != names[-1]:
            _save(part.folder, model, parts[-1])
    return Spent(
        num_steps=sum(part.num_steps for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        checks=[check for part in parts for check in part.checks],
        details={name: value for part in parts for name, value in part.details.items()},
    )


def _save(folder: Path, model: "PreTrainedModel", spent: Spent) -> None:
    """Keep what a finished recovery left, in place of its checkpoints; FINISHED appears last."""
    if distributed.is_main():
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        torch.save(dict(model.named_parameters()), temporary / "weights.pt")
        content = {
            "num_steps": spent.num_steps,
            "num_tokens": spent.num_tokens,
            "checks": spent.checks,
            "details": spent.details,
        }
        (temporary / FINISHED).write_text(json.dumps(content))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    distributed.barrier()


@torch.no_grad()
def _load(folder: Path, model: "PreTrainedModel") -> Spent:
    for name, weight in torch.load(folder / "weights.pt", map_location="cpu").items():
        model.get_parameter(name).copy_(weight)
    return Spent(**json.loads((folder / FINISHED).read_text()))

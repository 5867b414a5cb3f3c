"""Which recoveries there are, and how several follow one another.

A new recovery is one module and one entry in RECOVERIES. Its training is imported when it begins:
a dry run reads the dict and may not take seconds to start.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import is_whole, mark_whole, publish
from ptl_fast.config.grpo import GrpoSettings
from ptl_fast.recovery import estimate
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, RESULT = "weights.pt", "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """One way of recovering."""

    train: "Callable[[PreTrainedModel, RecoveryTask], RecoveryResult]"
    """Changes the model in place."""
    estimate: Callable[[estimate.Situation], estimate.Estimate]
    on_text: bool
    """Trains on --recovery-tokens of the data's text."""
    on_problems: bool = False
    """Asks the model the questions of the data, and judges its answers."""
    has_teacher: bool = False
    """Learns from another model's predictions."""
    reads_start: Callable[[GrpoSettings], bool] = lambda settings: False
    """Whether it compares with the weights that it began with, also when it goes on."""
    shortened: Callable[[RecoveryTask, float, dict[str, Any]], RecoveryTask] = (
        lambda task, share, details: task
    )
    """(task, share, details of the round's own recovery) -> the task of a recovery that takes this
    share of the steps, where steps and not tokens are its measure.
    """


def _train_nothing(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    options = task.options
    kept = options.optimizer_state if options.keep_optimizer_state else None
    return RecoveryResult(optimizer_state=kept)


def _continual_pretraining(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    from ptl_fast.recovery import continual_pretraining

    return continual_pretraining.train(model, task)


def _distillation(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    from ptl_fast.recovery.distillation import train

    return train.train(model, task)


def _grpo(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    from ptl_fast.recovery.grpo import train

    return train.train(model, task)


def _fewer_steps(task: RecoveryTask, share: float, details: dict[str, Any]) -> RecoveryTask:
    num_steps = max(1, round(share * details["steps"]))
    return dataclasses.replace(task, grpo=dataclasses.replace(task.grpo, grpo_steps=num_steps))


RECOVERIES = {
    "none": Recovery(train=_train_nothing, estimate=estimate.nothing, on_text=False),
    "cpt": Recovery(train=_continual_pretraining, estimate=estimate.on_text, on_text=True),
    "distill": Recovery(
        train=_distillation, estimate=estimate.distillation, on_text=True, has_teacher=True
    ),
    "grpo": Recovery(
        train=_grpo,
        estimate=estimate.grpo,
        on_text=False,
        on_problems=True,
        reads_start=lambda settings: settings.grpo_kl > 0,
        shortened=_fewer_steps,
    ),
}


def find(names: Sequence[str]) -> list[Recovery]:
    """The recoveries of these names.

    Raises:
        ValueError: there is no such recovery.
    """
    for name in names:
        if name not in RECOVERIES:
            raise ValueError(f"unknown recovery {name}; choose {', '.join(RECOVERIES)}")
    return [RECOVERIES[name] for name in names]


def trains_on_text(recovery: str) -> bool:
    """Whether a value of --recovery has a method that trains on the data's text; an unknown name is
    taken for one, and refused later.
    """
    known = [RECOVERIES.get(name.strip()) for name in recovery.split(",")]
    return any(each is None or each.on_text for each in known)


def recover(names: Sequence[str], model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    """Recover by one method, or by several after another, of which each finished one is kept in the
    task's folder.

    Those that train on text share the round's tokens equally; all have the round's problems. Without
    a name nothing is trained.
    """
    if not names:
        return _train_nothing(model, task)
    if len(names) == 1:
        return RECOVERIES[names[0]].train(model, task)
    num_on_text = sum(RECOVERIES[name].on_text for name in names)
    parts = []
    for name in names:
        part = dataclasses.replace(
            task,
            num_tokens=task.num_tokens // max(1, num_on_text),
            folder=task.folder / name,
            log_folder=task.log_folder / name,
        )
        if distributed.agree(is_whole(part.folder)):
            parts.append(_load(part.folder, model))
            continue
        parts.append(RECOVERIES[name].train(model, part))
        if name != names[-1]:
            _save(part.folder, model, parts[-1])
    return RecoveryResult(
        num_steps=sum(part.num_steps for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        checks=[check for part in parts for check in part.checks],
        details={name: value for part in parts for name, value in part.details.items()},
    )


def goes_on(names: Sequence[str], folder: Path) -> str | None:
    """The method that goes on from what is in the task's folder, where there is something."""
    from ptl_fast.recovery.checkpoints import newest_checkpoint

    if len(names) == 1:
        return names[0] if newest_checkpoint(folder) is not None else None
    whole = [distributed.agree(is_whole(folder / name)) for name in names]
    for name, finished in zip(names, whole, strict=True):
        if not finished:
            started = any(whole) or newest_checkpoint(folder / name) is not None
            return name if started else None
    return names[-1]


def _save(folder: Path, model: "PreTrainedModel", result: RecoveryResult) -> None:
    """Keep what a finished recovery left, in place of its checkpoints."""
    import torch

    if distributed.is_main():
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        torch.save(dict(model.named_parameters()), temporary / WEIGHTS)
        content = dataclasses.asdict(dataclasses.replace(result, optimizer_state=None))
        (temporary / RESULT).write_text(json.dumps(content))
        mark_whole(temporary)
        publish(temporary, folder)
    distributed.barrier()


def _load(folder: Path, model: "PreTrainedModel") -> RecoveryResult:
    import torch

    with torch.no_grad():
        for name, weight in torch.load(folder / WEIGHTS, map_location="cpu").items():
            model.get_parameter(name).copy_(weight)
    return RecoveryResult(**json.loads((folder / RESULT).read_text()))

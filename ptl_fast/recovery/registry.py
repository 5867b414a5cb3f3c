"""The recovery methods by name (RECOVERIES), and running several of them one after another.

A new method is one module and one entry in RECOVERIES. Its training code is imported when it is
called: a dry run reads the dict and must not spend seconds on importing torch.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.config.checking import unknown
from ptl_fast.config.grpo import GrpoSettings
from ptl_fast.config.opd import OpdSettings
from ptl_fast.recovery import estimate
from ptl_fast.recovery.grpo import rollouts as grpo_rollouts
from ptl_fast.recovery.on_policy import rollouts as opd_rollouts
from ptl_fast.recovery.rollouts import Rollouts
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """One recovery method, and what the rest of the run must know of it."""

    train: "Callable[[PreTrainedModel, RecoveryTask], RecoveryResult]"
    """Trains the model in place; resumes from a checkpoint in the task's folder."""
    estimate: Callable[[estimate.Situation], estimate.Estimate]
    """Predicts the cost, for the dry run."""
    on_text: bool
    """Whether it trains on the data's text, --recovery-tokens of it."""
    rollouts: Callable[[GrpoSettings, OpdSettings], Rollouts] | None = None
    """What it samples, if it lets the model answer the data's questions."""
    is_rewarded: bool = False
    """Whether it rewards the answers; its details then say which rewards were always 0."""
    has_teacher: bool = False
    """Whether it learns from a teacher model's predictions."""
    teacher_on_disk: bool = False
    """Whether those are computed ahead and stored, for which training needs the logits."""
    takes_divided: bool = False
    """Whether it trains a model that ZeRO-3 has divided before (``RecoveryTask.leave``)."""
    reads_start: Callable[[GrpoSettings], bool] = lambda settings: False
    """Whether it needs the weights it started from as a reference, also after a resume."""
    shortened: Callable[[RecoveryTask, float, dict[str, Any]], RecoveryTask] = (
        lambda task, share, details: task
    )
    """(task, share, details of the round's own recovery) -> the task of an extension that takes
    this share of its steps; for methods that count steps instead of tokens of text.
    """

    @property
    def on_problems(self) -> bool:
        """Whether it lets the model answer the data's questions."""
        return self.rollouts is not None


def _train_nothing(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    # the optimizer state of the round before is handed on: a later round may train again
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


def _on_policy(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    from ptl_fast.recovery.on_policy import train

    return train.train(model, task)


def _share_of_steps(share: float, details: dict[str, Any]) -> int:
    # from the steps that were taken, not --grpo-steps: by default the data decides on their number
    return max(1, round(share * details["steps"]))


def _less_grpo(task: RecoveryTask, share: float, details: dict[str, Any]) -> RecoveryTask:
    fewer = dataclasses.replace(task.grpo, grpo_steps=_share_of_steps(share, details))
    return dataclasses.replace(task, grpo=fewer)


def _less_opd(task: RecoveryTask, share: float, details: dict[str, Any]) -> RecoveryTask:
    fewer = dataclasses.replace(task.opd, opd_steps=_share_of_steps(share, details))
    return dataclasses.replace(task, opd=fewer)


RECOVERIES = {
    "none": Recovery(train=_train_nothing, estimate=estimate.nothing, on_text=False),
    "cpt": Recovery(
        train=_continual_pretraining, estimate=estimate.on_text, on_text=True, takes_divided=True
    ),
    "distill": Recovery(
        train=_distillation,
        estimate=estimate.distillation,
        on_text=True,
        has_teacher=True,
        teacher_on_disk=True,
    ),
    "opd": Recovery(
        train=_on_policy,
        estimate=estimate.on_policy,
        on_text=False,
        rollouts=lambda grpo, opd: opd_rollouts.rollouts_of(opd),
        has_teacher=True,
        shortened=_less_opd,
    ),
    "grpo": Recovery(
        train=_grpo,
        estimate=estimate.grpo,
        on_text=False,
        rollouts=lambda grpo, opd: grpo_rollouts.rollouts_of(grpo),
        is_rewarded=True,
        # the KL penalty is against the weights that training started from
        reads_start=lambda settings: settings.grpo_kl > 0,
        shortened=_less_grpo,
    ),
}


def find(names: Sequence[str]) -> list[Recovery]:
    """The recovery methods of these names, in their order.

    Raises:
        ValueError: there is no method of a name.
    """
    for name in names:
        if name not in RECOVERIES:
            raise ValueError(unknown("recovery", name, RECOVERIES))
    return [RECOVERIES[name] for name in names]


def rollouts_of(names: Sequence[str], grpo: GrpoSettings, opd: OpdSettings) -> list[Rollouts]:
    """What each of these methods samples, of those that let the model answer questions."""
    functions = [each.rollouts for each in find(names)]
    return [function(grpo, opd) for function in functions if function is not None]


def takes_divided(names: Sequence[str]) -> bool:
    """Whether a model can be divided before these methods, as long as they are one."""
    return len(names) == 1 and find(names)[0].takes_divided


def trains(names: Sequence[str]) -> bool:
    """Whether any of these methods trains at all."""
    return any(each.train is not _train_nothing for each in find(names))


def check_idle(own_flag: str, names: Sequence[str], is_final: bool) -> None:
    """Raise ValueError for a method that does not train beside others, or as the final recovery."""
    idle = [name for name in names if not trains([name])]
    if idle and (is_final or len(names) > 1):
        raise ValueError(
            f"{own_flag} {','.join(names)}: {idle[0]} trains nothing; give it only as --recovery"
            f" {idle[0]}"
        )


def trains_on_text(recovery: str) -> bool:
    """Whether a value of --recovery, NAME[,NAME...], has a method that trains on the data's text.

    An unknown name counts as one: this is asked before settings are checked, which refuses it.
    """
    known = [RECOVERIES.get(name.strip()) for name in recovery.split(",")]
    return any(each is None or each.on_text for each in known)


def recover(names: Sequence[str], model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    """Train the model in place, by one method or by several one after another.

    Methods that train on text share the task's tokens equally; each has all of its problems. With
    several methods, each has a folder of its own in the task's, NAME/: checkpoints while it trains,
    then its weights. A resumed run loads the finished methods' weights, and resumes the first
    unfinished one from its checkpoint.

    Args:
        names: keys of RECOVERIES; without any, nothing is trained.

    Returns:
        The sums over the methods. With several there is no optimizer state.
    """
    if not names:
        return _train_nothing(model, task)
    if len(names) == 1:
        return RECOVERIES[names[0]].train(model, task)
    # methods on problems have their own number of steps: only those on text share the tokens
    num_on_text = sum(RECOVERIES[name].on_text for name in names)
    parts = []
    for name in names:
        part = dataclasses.replace(
            task,
            num_tokens=task.num_tokens // max(1, num_on_text),
            folder=task.folder.method(name),
            log_folder=task.log_folder / name,
            run_name=f"{task.run_name or task.name}/{name}",
        )
        # finished before an interruption
        if part.folder.finished.exists():
            parts.append(_load(part.folder, model))
            continue
        parts.append(RECOVERIES[name].train(model, part))
        # the caller saves the model after the last one
        if name != names[-1]:
            _save(part.folder, model, parts[-1])
    return RecoveryResult(
        num_steps=sum(part.num_steps for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        checks=[check for part in parts for check in part.checks],
        details={name: value for part in parts for name, value in part.details.items()},
    )


def goes_on(names: Sequence[str], folder: RecoveryFolder) -> str | None:
    """The method that ``recover`` would resume in this folder; None if all would start anew.

    "Resume" includes a method that has not begun, if one before it is finished.
    """
    if len(names) == 1:
        return names[0] if folder.newest_checkpoint() is not None else None
    whole = [folder.method(name).finished.exists() for name in names]
    for name, finished in zip(names, whole, strict=True):
        if not finished:
            started = any(whole) or folder.method(name).newest_checkpoint() is not None
            return name if started else None
    return names[-1]


def _save(folder: RecoveryFolder, model: "PreTrainedModel", result: RecoveryResult) -> None:
    """Save a finished method's weights and result, replacing its checkpoints in one rename.

    A crash before the rename leaves the checkpoints, so the method resumes from the newest one.
    """
    import torch

    def write(path: Path) -> None:
        new = RecoveryFolder(path)
        # parameters by name, tied ones once: the architecture is that of the model in memory
        torch.save(dict(model.named_parameters()), new.weights.path)
        content = dataclasses.asdict(dataclasses.replace(result, optimizer_state=None))
        new.result.path.write_text(json.dumps(content))

    folder.finished.fill(write)


def _load(folder: RecoveryFolder, model: "PreTrainedModel") -> RecoveryResult:
    """Load what ``_save`` has written into the model, in place; return the method's result."""
    import torch

    # copied into the existing tensors, which keeps them on their device and tied
    with torch.no_grad():
        for name, weight in torch.load(folder.weights.path, map_location="cpu").items():
            model.get_parameter(name).copy_(weight)
    return RecoveryResult(**folder.result.read())

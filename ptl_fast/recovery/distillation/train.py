"""Recovery by distillation: the teacher's predictions are computed first, then the student trains."""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ptl_fast.model import loading
from ptl_fast.recovery import continual_pretraining
from ptl_fast.recovery.distillation.loss import Teaching
from ptl_fast.recovery.distillation.teacher_cache import TeacherCache, fill
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLDER = "teacher"  # in the round's recovery folder, which goes when the round is finished


def train(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    """Train as continual pre-training does, on the loss of ptl_fast.recovery.distillation.loss.
    Before that the teacher runs over the sequences that training will read.

    Raises:
        ValueError: as continual pre-training; or the teacher's predictions do not fit on the disk.
    """
    distill, vocab_size = task.distill, model.config.get_text_config().vocab_size
    rows = continual_pretraining.examples(
        task.tokens, task.num_tokens, task.trainer.global_batch, task.seed
    ).unique()
    length, top_k = task.tokens.input_ids.shape[1], distill.distill_top_k
    cache = TeacherCache(task.folder / FOLDER, rows, length, top_k, vocab_size)

    def prepare() -> None:
        fill(
            cache,
            task.tokens,
            partial(_load_teacher, task, str(model.device)),
            top_k,
            distill.distill_temperature,
            vocab_size,
            task.trainer.micro_batch,
            f"{task.name}: teacher",
        )

    teaching = Teaching(cache, distill.distill_weight, distill.distill_temperature, prepare)
    try:
        return continual_pretraining.train(model, task, teaching)
    finally:
        cache.close()


def _load_teacher(task: RecoveryTask, device: str) -> "PreTrainedModel":
    """--teacher, or else the original model, in its own type."""
    name, flag = task.distill.teacher, "--teacher"
    if name is None:
        name, flag = task.model.model, "--model"
    assert name is not None
    # ZeRO-3 of the round before would spread this model too; the next Trainer sets its own
    unset_hf_deepspeed_config()
    return loading.load_model(name, dataclasses.replace(task.model, dtype="auto"), device, flag)

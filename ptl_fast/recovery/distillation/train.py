"""Recovery by distillation: cache the teacher's predictions, then train the student on them."""

from functools import partial
from typing import TYPE_CHECKING

from ptl_fast.recovery import continual_pretraining
from ptl_fast.recovery.distillation.loss import Teaching
from ptl_fast.recovery.distillation.teacher_cache import TeacherCache, fill
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.recovery.teacher import load_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
    """Train in place as continual pre-training does, with the distillation loss.

    Before training, the teacher makes one forward pass over each sequence that training will read.

    Raises:
        Diverged: the loss is NaN or infinite.
        ValueError: the global batch does not divide among the ranks, the predictions do not fit on
            the disk, or the model's class computes its loss where it cannot be replaced.
    """
    # several epochs read a sequence again: one prediction is enough
    distill, vocab_size = task.distill, model.config.get_text_config().vocab_size
    # several epochs read a sequence more than once, but need its predictions once
    rows = continual_pretraining.examples(
        task.tokens, task.num_tokens, task.trainer.global_batch, task.seed
    ).unique()
    length, top_k = task.tokens.input_ids.shape[1], distill.distill_top_k
    cache = TeacherCache(task.folder, rows, length, top_k, vocab_size)

    # called by continual pre-training: a round with nothing to recover needs no teacher
    def prepare() -> None:
        fill(
            cache,
            task.tokens,
            partial(load_teacher, task, str(model.device)),
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

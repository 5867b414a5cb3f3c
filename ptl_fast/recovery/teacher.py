"""Load the model that a recovery learns from."""

import dataclasses
from typing import TYPE_CHECKING

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ptl_fast.model import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.recovery.task import RecoveryTask


def load_teacher(task: "RecoveryTask", device: str) -> "PreTrainedModel":
    """Load --teacher, by default the original model (--model), in its checkpoint's dtype."""
    name, flag = task.distill.teacher, "--teacher"
    settings = dataclasses.replace(task.model, dtype="auto")
    if name is None:
        name, flag = task.model.model, "--model"
    else:
        # --revision and --merge-adapter are --model's
        settings = dataclasses.replace(
            settings, revision=task.distill.teacher_revision, merge_adapter=False
        )
    assert name is not None
    # the previous round's global ZeRO-3 config would shard the teacher too; this round's Trainer
    # sets it anew
    unset_hf_deepspeed_config()
    return loading.load_model(name, settings, device, flag)

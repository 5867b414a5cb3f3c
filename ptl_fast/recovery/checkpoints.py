"""Checkpoints during a round's recovery: when to write them."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainingArguments

from ptl_fast.base import distributed
from ptl_fast.base.run_files import Checkpoint, RecoveryFolder

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState


class Checkpoints(TrainerCallback):
    """Saves a checkpoint every ``seconds`` seconds, and keeps only the newest complete one.

    Args:
        folder: where the Trainer writes them.
        seconds: wall-clock time between two checkpoints.
        end: returns the round's last step, where no checkpoint is needed; a function, as early
            stopping moves it.
        keep: called on every rank with the new checkpoint, to write what the Trainer does not save.
    """

    def __init__(
        self,
        folder: RecoveryFolder,
        seconds: float,
        end: Callable[[], int],
        keep: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        self.folder, self.seconds, self.end, self.keep = folder, seconds, end, keep
        self.last = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        due = time.monotonic() - self.last >= self.seconds and state.global_step < self.end()
        # the ranks' clocks differ, and saving is a collective operation: the main rank decides
        control.should_save = distributed.agree(due)

    def on_save(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        checkpoint = self.folder.checkpoint(state.global_step)
        if self.keep is not None:
            self.keep(checkpoint)
        # waits for every rank, as each has files of its own: random states, ZeRO shards
        checkpoint.mark()
        # older ones go only now: a crash at any moment leaves a complete checkpoint
        self.folder.remove_checkpoints(but=checkpoint)
        self.last = time.monotonic()

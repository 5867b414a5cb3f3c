"""Checkpoints during a round's recovery: when to write them, and which ones are complete."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainingArguments

from ptl_fast.base import distributed
from ptl_fast.base.atomic_files import is_whole, mark_whole

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState


class Checkpoints(TrainerCallback):
    """Saves a checkpoint every ``seconds`` seconds, and keeps only the newest complete one.

    Args:
        folder: where the Trainer writes its checkpoint-STEP folders.
        seconds: wall-clock time between two checkpoints.
        end: returns the round's last step, where no checkpoint is needed; a function, as early
            stopping moves it.
        keep: called on every rank with the new checkpoint's folder, to write what the Trainer does
            not save.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        end: Callable[[], int],
        keep: Callable[[Path], None] | None = None,
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
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if self.keep is not None:
            self.keep(checkpoint)
        # every rank writes files of its own (random states, ZeRO shards) before the mark
        distributed.barrier()
        if distributed.is_main():
            mark_whole(checkpoint)
            # older ones go only now: a crash at any moment leaves a complete checkpoint
            for other in self.folder.glob("checkpoint-*"):
                if other != checkpoint:
                    shutil.rmtree(other)
        distributed.barrier()
        self.last = time.monotonic()


def newest_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint of ``folder``, or None; the same on all ranks."""
    whole = [str(each) for each in folder.glob("checkpoint-*") if is_whole(each)]
    agreed = distributed.agree(whole)
    return max(agreed, key=lambda path: int(path.rsplit("-", 1)[1]), default=None)

"""Checkpoints inside a recovery: when they are written, and which of them are whole."""

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
    """Asks for a checkpoint when enough time has passed, marks it complete once it is on disk, and
    removes the ones before.

    Args:
        end: the step after which none is needed.
        keep: called by every rank with the new checkpoint's folder, to add what the Trainer's own
            state lacks.
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
        distributed.barrier()
        if distributed.is_main():
            mark_whole(checkpoint)
            for other in self.folder.glob("checkpoint-*"):
                if other != checkpoint:
                    shutil.rmtree(other)
        distributed.barrier()
        self.last = time.monotonic()


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end and is still whole, or None."""
    whole = [str(each) for each in folder.glob("checkpoint-*") if is_whole(each)]
    agreed = distributed.agree(whole)
    return max(agreed, key=lambda path: int(path.rsplit("-", 1)[1]), default=None)

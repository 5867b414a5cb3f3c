"""Checkpoints during a round's recovery: when to write them, also because the run is to end."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainingArguments

from ptl_fast.base import distributed, interruption, own_folder
from ptl_fast.base.disk import check_space
from ptl_fast.base.errors import StorageFailed
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
        self.last, self.stop = time.monotonic(), 0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        due = time.monotonic() - self.last >= self.seconds
        # the ranks' clocks differ, and saving is a collective operation: the main rank decides
        due, self.stop, lost = distributed.agree((due, interruption.asked(), own_folder.is_lost()))
        if lost:
            own_folder.check()
            raise StorageFailed("the run's folder was deleted or moved")  # of the other ranks
        if state.global_step >= self.end():
            # the round's weights are about to be saved instead, if there is time
            self.stop = 0
            control.should_save = False
            return
        control.should_save = due or bool(self.stop)
        if control.should_save and distributed.is_main():
            self._check_space(state.global_step, kwargs.get("model"), kwargs.get("optimizer"))

    def _check_space(self, step: int, model: Any, optimizer: Any) -> None:
        """Raise StorageFailed if a checkpoint does not fit on the disk, or Stopped if the run is to
        end anyway.
        """
        states = getattr(optimizer, "state", {}).values() if optimizer is not None else ()
        moments = [each for state in states for each in state.values() if hasattr(each, "numel")]
        weights = [] if model is None else list(model.parameters())
        needed = sum(each.numel() * each.element_size() for each in (*weights, *moments))
        try:
            check_space(self.folder.checkpoint(step).path, needed)
        except StorageFailed:
            if self.stop:
                raise interruption.Stopped(self.stop) from None
            raise

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
        if self.stop:
            raise interruption.Stopped(self.stop)

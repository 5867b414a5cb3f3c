"""Checkpoints come in time, and replace the one before once they are whole."""

import types
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.base.run_files import Checkpoint, RecoveryFolder
from ptl_fast.recovery import checkpoints


def callback(folder: Path, seconds: float, end: int = 10) -> tuple[checkpoints.Checkpoints, Any]:
    """Saves so often, and none at the last step; with a control that says what it asked for."""
    control = types.SimpleNamespace(should_save=False)
    own = RecoveryFolder(folder)
    return checkpoints.Checkpoints(own, seconds, lambda: end, mark_kept), control


def mark_kept(checkpoint: Checkpoint) -> None:
    (checkpoint.path / "kept").write_text("x")


def state(step: int) -> Any:
    return types.SimpleNamespace(global_step=step)


def test_checkpoint_is_due_when_the_time_has_passed_and_steps_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    saving, control = callback(tmp_path, seconds=60)
    arguments: Any = None
    asked = []
    for now[0], step in ((159.0, 1), (160.0, 2), (160.0, 10)):
        saving.on_step_end(arguments, state(step), control)
        asked.append(control.should_save)
    assert asked == [False, True, False], "after the last step there is nothing to go on from"
    (tmp_path / "checkpoint-2").mkdir()
    saving.on_save(arguments, state(2), control)
    now[0] = 219.0
    saving.on_step_end(arguments, state(3), control)
    assert not control.should_save, "a minute from the last one"


def test_new_checkpoint_replaces_the_one_before_once_it_is_whole(tmp_path: Path) -> None:
    saving, control = callback(tmp_path, seconds=0)
    arguments: Any = None
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"moments")
        saving.on_save(arguments, state(step), control)
        folder = RecoveryFolder(tmp_path)
        assert folder.newest_checkpoint() == folder.checkpoint(step)
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-12"]
    assert (tmp_path / "checkpoint-12" / "kept").is_file(), "what the Trainer does not save"

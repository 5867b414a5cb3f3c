"""Checkpoints come in time, replace the one before, and are used only if they are whole."""

import types
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.base.atomic_files import WHOLE
from ptl_fast.recovery import checkpoints


def test_half_written_checkpoint_is_not_used(tmp_path: Path) -> None:
    for step in (3, 12, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpoints.newest_checkpoint(tmp_path) is None
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"moments")
        (tmp_path / f"checkpoint-{step}" / WHOLE).write_text('{"optimizer.pt": 7}')
    assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    (tmp_path / "checkpoint-12" / "optimizer.pt").write_bytes(b"mom")  # as after a power failure
    assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def callback(folder: Path, seconds: float, end: int = 10) -> tuple[checkpoints.Checkpoints, Any]:
    """Saves so often, and none at the last step; with a control that says what it asked for."""
    control = types.SimpleNamespace(should_save=False)
    return checkpoints.Checkpoints(folder, seconds, lambda: end, mark_kept), control


def mark_kept(checkpoint: Path) -> None:
    (checkpoint / "kept").write_text("x")


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
        assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{step}")
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-12"]
    assert (tmp_path / "checkpoint-12" / "kept").is_file(), "what the Trainer does not save"

"""What trackers are given, and what is told where one is missing."""

import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.base import trackers
from ptl_fast.base.trackers import TRACKERS
from support.tracked import scalars


class Fake(types.ModuleType):
    """A module with the calls of wandb and trackio that are used here."""

    def __init__(self, name: str, logged_in: bool = True) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.logged_in = logged_in

    def init(self, **settings: Any) -> "Fake":
        print(f"{self.__name__} prints")
        self.calls.append(("init", settings))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", {**values, "step": step}))

    def finish(self) -> None:
        self.calls.append(("finish", {}))

    def login(self, prompt: bool) -> bool:
        assert not prompt, "a run must not wait for an answer"
        return self.logged_in


@pytest.fixture(params=["wandb", "trackio"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_tensorboard_has_one_file_a_round_however_often_it_is_written(tmp_path: Path) -> None:
    write = TRACKERS["tensorboard"].write
    for number, value in [(0, 5.0), (1, 1.0), (1, 2.0), (2, 3.0)]:
        write(tmp_path, "run", number, {"size/width": value})
    assert scalars(tmp_path) == {"size/width": [(0, 5.0), (1, 2.0), (2, 3.0)]}
    assert len(list(tmp_path.iterdir())) == 3


def test_rounds_are_a_run_of_their_own_that_is_gone_on_with(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TRACKERS[fake.__name__].write(tmp_path, "mine-1", 3, {"size/width": 640.0})
    (first, settings), *others = fake.calls
    assert first == "init"
    assert settings["name"] == "mine-1/rounds"
    assert settings["group"] == "mine-1"
    assert settings["resume"] == "allow"
    assert others == [("log", {"size/width": 640.0, "step": 3}), ("finish", {})]
    assert fake.__name__ == "wandb" or not capsys.readouterr().out


def test_a_missing_package_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is not installed; pip install wandb, or"):
        trackers.check(["wandb"])


def test_a_package_that_lacks_another_is_told_before_work_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "trackio.py").write_text("import a_client_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ValueError, match=r"trackio cannot be imported .*'a_client_of_it'"):
        trackers.check(["trackio"])


@pytest.mark.parametrize(("mode", "refused"), [(None, True), ("offline", False)])
def test_nobody_logged_in_is_told_before_work_begins(
    mode: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb", logged_in=False))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    if not refused:
        trackers.check(["wandb"])
        return
    with pytest.raises(ValueError, match="not logged in; run `wandb login`"):
        trackers.check(["wandb"])


def test_trainings_stand_beside_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_RUN_GROUP", "WANDB_DIR", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    TRACKERS["wandb"].prepare(tmp_path, "mine-1")
    assert os.environ["WANDB_RUN_GROUP"] == "mine-1"
    assert os.environ["WANDB_DIR"] == str(tmp_path)


def test_a_training_ends_its_run(fake: Fake) -> None:
    TRACKERS[fake.__name__].end_training()
    assert fake.calls == ([("finish", {})] if fake.__name__ == "wandb" else [])

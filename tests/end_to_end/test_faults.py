"""Signals and failing writes end a run with one line, and the same command ends as undisturbed."""

import gc
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptl_fast import compress
from ptl_fast.recovery import trainer
from support.runs import RUN, as_flags, main

SETTINGS = {**RUN, "rounds": 1, "recovery_tokens": 3000, "checkpoint_minutes": 60.0}


@pytest.fixture(scope="module")
def undisturbed(tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("undisturbed")
    compress(**tiny_run, **SETTINGS, output=output)
    return result(output)


def result(output: Path) -> bytes:
    return (output / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint(
    number: int,
    undisturbed: bytes,
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin = trainer.StopAtNan.on_step_begin

    def signalled(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            signal.raise_signal(number)
        begin(self, args, state, control, **kwargs)

    flags = as_flags({**tiny_run, **SETTINGS, "output": tmp_path})
    with monkeypatch.context() as patched:
        patched.setattr(trainer.StopAtNan, "on_step_begin", signalled)
        assert main(flags) == 128 + number
    assert "; the same command continues from here" in capsys.readouterr().err
    assert (tmp_path / "round-01" / "recovery" / "checkpoint-3" / "complete").exists()
    gc.collect()
    assert main(flags) == 0
    assert result(tmp_path) == undisturbed


@pytest.fixture
def limit_files() -> Iterator[Any]:
    """Let no file of this process become larger than so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# the model has 250 kB, Adam's moments twice as much
@pytest.mark.parametrize(("size", "minutes"), [(150_000, 60.0), (150_000, 0.0), (350_000, 0.0)])
def test_a_write_that_fails_is_one_line_and_loses_nothing(
    size: int,
    minutes: float,
    undisturbed: bytes,
    limit_files: Any,
    tiny_run: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = as_flags({**tiny_run, **SETTINGS, "checkpoint_minutes": minutes, "output": tmp_path})
    limit_files(size)
    assert main(flags) == 2
    limit_files(resource.RLIM_INFINITY)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"error: {tmp_path}/round-01/")
    assert "cannot be written: " in told
    assert told.endswith(
        "MiB are free on its disk). Once that is mended, the same command continues from here."
    )
    gc.collect()
    assert main(flags) == 0
    assert result(tmp_path) == undisturbed


def test_a_full_disk_is_noticed_before_weights_are_written(
    undisturbed: bytes,
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage
    flags = as_flags({**tiny_run, **SETTINGS, "output": tmp_path})

    def full(path: Any) -> Any:
        found = usage(path)
        # once the round has begun
        return found._replace(free=100_000) if (tmp_path / "round-01").exists() else found

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", full)
        assert main(flags) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "round-01/model needs about 0.2 MiB, and 0.1 MiB are free on its disk. Once" in told
    gc.collect()
    assert main(flags) == 0
    assert result(tmp_path) == undisturbed


def test_a_folder_that_is_deleted_meanwhile_is_no_new_run(
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def deleted(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(trainer.StopAtNan, "on_step_begin", deleted)
    assert main(as_flags({**tiny_run, **SETTINGS, "output": tmp_path / "run"})) == 2
    assert "was deleted or moved while the run was working in it" in capsys.readouterr().err

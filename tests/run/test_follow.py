"""A run's folder says what the run is doing, without the run's help."""

import fcntl
import json
import threading
import time
from pathlib import Path

import pytest

from ptl_fast.base.atomic_files import write_atomically
from ptl_fast.base.run_files import RunFiles
from ptl_fast.run import follow

RECORD = {
    "round": 1,
    "width": 384,
    "num_parameters": 826_800,
    "seconds": {"recover": 75.5},
    "eval_pruned": {"nll": {"nll": 1.5, "perplexity": 4.5}},
    "eval": {"nll": {"nll": 0.5, "perplexity": 1.6}},
}


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content).encode())


def test_each_stage_is_told_from_the_files_that_are_there(tmp_path: Path) -> None:
    files, told = RunFiles(tmp_path), []
    first = files.round(1)
    training = first.recovery_folder().path / "checkpoint-40" / "trainer_state.json"
    for path, content in (
        (files.state_file.path, {}),
        (files.dense.path, {}),
        (first.plan.path, {}),
        (first.pruned.path, {}),
        (training, {"global_step": 40, "max_steps": 83}),
        (first.recovery().path, {}),
        (first.recovered().path, {}),
        (first.record.path, RECORD),
        (files.report.path, {"final": {"width": 384}}),
        (files.final.path / "config.json", {}),
    ):
        put(path, content)
        told.append(follow.status(files).doing)
    assert told == [
        "evaluating the original model",
        "round 1: scoring",
        "round 1: pruning and evaluating",
        "round 1: recovering",
        "round 1: recovering, 40 of 83 steps saved",
        "round 1: evaluating",
        "round 1: deciding",
        "round 1 is finished",
        "round 1 is finished",
        "done",
    ]


def test_a_folder_without_a_run_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_run_that_stopped_is_told_and_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = RunFiles(tmp_path)
    put(files.state_file.path, {})
    put(files.dense.path, {})
    put(files.round(1).record.path, RECORD)
    assert follow.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert (
        "round 1: width 384, 826,800 parameters, nll nll 1.5000 pruned, nll nll 0.5000 recovered,"
        " 1:15\n" in out
    )
    assert "The same command goes on from there." in out


@pytest.mark.skipif(not follow.LOCKS.exists(), reason="locks are read from /proc/locks")
def test_it_follows_a_run_until_the_lock_is_released(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, codes = RunFiles(tmp_path), []
    put(files.state_file.path, {})
    put(files.dense.path, {})
    lock = files.lock_file.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert follow.is_running(files)
    follower = threading.Thread(target=lambda: codes.append(follow.follow(files, 0.01)))
    follower.start()
    put(files.round(1).record.path, RECORD)
    time.sleep(0.1)
    assert follower.is_alive()
    put(files.report.path, {"final": {}, "rounds": []} | {"final": {"width": 384}})
    put(files.final.path / "config.json", {})
    lock.close()
    follower.join(10)
    assert codes == [0]
    out = capsys.readouterr().out
    assert out.count("round 1: width 384") == 1
    assert "finished:" in out

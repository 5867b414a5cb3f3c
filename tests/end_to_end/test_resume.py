"""A run that is killed in any stage goes on with the same command, and ends bit-identical to one
that was not.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from support.runs import without_seconds

FLAGS = (
    "--rounds 1 --keep 0.75 --drop-layers 1 --order layers-then-neurons --recovery-tokens"
    " 12000 --sequence-length 128"
)
FLAGS += (
    " --global-batch 8 --micro-batch 8 --calibration-tokens 4000 --eval-limit 20"
    " --checkpoint-minutes 0 --device cpu"
)


STAGES = [
    "dense.json",
    "round-01/plan.json",
    "round-01/pruned.json",
    "round-01/recovery/checkpoint-*/complete",
    "round-01/model.tmp",
    "round-01/model",
    "round-01/record.json",
    "round-02/statistics.safetensors",
    "round-02/plan.json",
    "round-02/recovery/checkpoint-*",
    "round-02/model",
    "round-02/record.json",
]


def kill_when(appears: str, command: list[str], folder: Path, environment: dict[str, str]) -> bool:
    """Start the run and kill -9 it as soon as a file appears that was not there before; False if
    the run ended first.
    """
    before = set(folder.glob(f"run/{appears}"))
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if set(folder.glob(f"run/{appears}")) - before:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    assert process.returncode == 0
    return False


def test_killed_run_goes_on_and_ends_bit_identical(
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    result = command_line(*FLAGS.split(), "--output", "undisturbed")
    assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "ptl_fast.compress", *FLAGS.split(), "--output", "run"]
    kills = [stage for stage in STAGES if kill_when(stage, command, tmp_path, environment)]
    # a folder that lives for milliseconds may be missed; every file that stays may not
    assert set(STAGES) - set(kills) <= {"round-01/model.tmp"}, kills
    result = command_line(*FLAGS.split(), "--output", "run")
    assert result.returncode == 0, result.stderr
    assert "continuing after round" in result.stdout
    runs = [tmp_path / "undisturbed", tmp_path / "run"]
    for name in (
        "final/model.safetensors",
        "final/config.json",
        "round-01/plan.json",
        "round-02/statistics.safetensors",
    ):
        first, second = [(run / name).read_bytes() for run in runs]
        assert first == second, name
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert without_seconds(reports[0]) == without_seconds(reports[1])
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert sorted(path.parent.name for path in (tmp_path / "run").glob("round-*/model")) == [
        "round-02"
    ]


def test_a_run_goes_on_with_smaller_batches(
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """As after running out of memory: in the middle of recovery, with the same weights in the end,
    to rounding.
    """
    flags = FLAGS.replace("--drop-layers 1 --order layers-then-neurons ", "").split()
    assert command_line(*flags, "--output", "undisturbed").returncode == 0
    command = [sys.executable, "-m", "ptl_fast.compress", *flags, "--output", "run"]
    assert kill_when("round-01/recovery/checkpoint-*/complete", command, tmp_path, environment)
    smaller = ["--micro-batch", 2, "--eval-batch", 3, "--gradient-checkpointing", "true"]
    result = command_line(*flags, "--output", "run", *smaller)
    assert result.returncode == 0, result.stderr
    assert "--micro-batch was 8 and is 2 from here" in result.stdout
    first, second = (
        load_file(tmp_path / run / "final" / "model.safetensors") for run in ("undisturbed", "run")
    )
    for name, weight in first.items():
        assert (second[name] - weight).norm() <= 1e-5 * weight.norm(), name
    assert json.loads((tmp_path / "run" / "state.json").read_text())["config"]["micro_batch"] == 2


def test_finished_run_answers_at_once_and_another_is_refused(
    command_line: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    flags = (
        "--rounds 1 --recovery none --recovery-tokens 9000 --sequence-length 128 --eval-limit"
        " 10 --calibration-tokens 2000"
    )
    flags += " --device cpu --output run"
    assert command_line(*flags.split()).returncode == 0
    weights = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    again = command_line(*flags.split(), "--checkpoint-minutes", 3)
    assert again.returncode == 0, again.stderr
    assert "Result: run/final" in again.stdout
    other = command_line(*flags.split(), "--keep", 0.75)
    assert other.returncode == 2
    assert "run holds another run: its --keep is 0.5, now it is 0.75" in other.stderr
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == weights
    assert command_line(*flags.split(), "--keep", 0.75, "--overwrite").returncode == 0
    assert (
        json.loads((tmp_path / "run" / "final" / "config.json").read_text())["intermediate_size"]
        == 576
    )


def test_library_use(tmp_path: Path) -> None:
    """``from ptl_fast import compress`` is a function."""
    from ptl_fast import compress

    settings = {
        "recovery": "none",
        "recovery_tokens": 9000,
        "sequence_length": 128,
        "eval_limit": 5,
        "calibration_tokens": 2000,
    }
    report = compress(**settings, rounds=1, device="cpu", output=str(tmp_path / "run"))
    assert report["final"]["width"] == 384

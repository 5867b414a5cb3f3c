"""The GPU scripts run from end to end in their rehearsals, and no step stops the next."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.forked_python import forked_python

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """Each step in a process of its own, without each step's import of torch and transformers."""
    with forked_python() as program:
        yield str(program)


def _bash(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", *arguments], cwd=ROOT, env=variables, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("import sys; sys.exit(3)", (3, "")),
        ("import sys; sys.exit('why')", (1, "why")),
        ("1 / 0", (1, "ZeroDivisionError: division by zero")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", (-signal.SIGKILL, "")),
        ("import ptl_fast.run.loop, sys; sys.exit(sys.argv[1])", (1, "argument")),
    ],
)
def test_the_python_of_these_tests_ends_as_python_does(
    code: str, ends: tuple[int, str], python: str
) -> None:
    command = [python, "-c", code, "argument"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.strip().split("\n")[-1]) == ends


def test_a_command_dies_with_the_python_of_these_tests(python: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        command = int(client.stdout.readline())
        client.kill()
    end = time.monotonic() + 20
    while Path(f"/proc/{command}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{command}").exists()


def test_gpu_suite_rehearsal_writes_the_results_of_every_step(tmp_path: Path, python: str) -> None:
    done = _bash(
        ["benchmarks/gpu/suite.sh", "--rehearse", str(tmp_path)], PYTHON=python, NAME="dry"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {file.name for file in tmp_path.iterdir()}
    results = {
        "kernels_dry.json",
        "scoring_tiny_dry.json",
        "speedup_tiny_dry.json",
        "alignment_dry.json",
    }
    results |= {"compaction_tiny_dry.json", "throughput_dry.json"}
    assert files == {"log.txt", *results}
    for name in results:
        assert (
            json.loads((tmp_path / name).read_text())["environment"]["torch"] == torch.__version__
        )
    assert "1 passed" in (tmp_path / "log.txt").read_text()


def test_gpu_quality_rehearsal_compares_the_methods_with_equal_tokens(
    tmp_path: Path, python: str
) -> None:
    done = _bash(
        ["benchmarks/gpu/quality.sh", "--rehearse", str(tmp_path)], PYTHON=python, NAME="dry"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "quality_smollm2_dry.json").read_text())["rows"]
    methods = {row["method"] for row in rows}
    assert methods - {"slicegpt"} == {"ptl", "prune-once", "shortgpt", "dense-same-training"}
    assert ("slicegpt" in methods) != ("slicegpt: not measured" in done.stdout)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["recovery_tokens"] for row in rows} == {512}
    ours = next(row for row in rows if row["method"] == "ptl")
    assert (ours["num_rounds"], ours["width"]) == (2, 384)


def test_gpu_reasoning_rehearsal_makes_traces_models_and_answers(
    tmp_path: Path, python: str
) -> None:
    done = _bash(["benchmarks/gpu/reasoning.sh", "--rehearse", str(tmp_path)], PYTHON=python)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = {"dense", "default_80_own_none_0", "paper_80_own_none_0"}
    assert {file.stem for file in tmp_path.glob("*.json")} == cells
    for name in cells:
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert result["finished"]
        assert {name: len(each) for name, each in result["answers"].items()} == {
            "gsm8k": 4,
            "mbpp": 4,
        }
    again = _bash(["benchmarks/gpu/reasoning.sh", "--rehearse", str(tmp_path)], PYTHON=python)
    assert again.returncode == 0
    assert "right of" not in (tmp_path / "log.txt").read_text(), "nothing was left to do"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_gpu_suite_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    done = _bash(["benchmarks/gpu/suite.sh", str(tmp_path)])
    assert done.returncode == 2
    assert "--rehearse runs everything on the CPU" in done.stdout


def test_a_failing_or_slow_step_does_not_stop_the_next(tmp_path: Path) -> None:
    script = tmp_path / "steps"
    script.write_text(
        f"out={tmp_path} rehearse=0 total_limit=60\nsource benchmarks/gpu/time_limited.sh\n"
        "step broken 5 bash -c 'echo reason; exit 3'\nstep slow 1 sleep 20\nstep good 5 echo fine\n"
        "total_limit=0\nstep late 5 echo never\nfinish\n"
    )
    done = _bash([str(script)])
    assert done.returncode == 1
    assert "broken: FAILED with exit code 3" in done.stdout
    assert "slow: STOPPED after 1 s" in done.stdout
    assert "good: done" in done.stdout
    assert "late: not run" in done.stdout
    assert "3 steps failed" in done.stdout
    assert {"reason", "fine"} <= set((tmp_path / "log.txt").read_text().split())

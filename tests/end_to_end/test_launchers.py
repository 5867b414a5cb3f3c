"""Two real processes under the torchrun and deepspeed launchers with DeepSpeed ZeRO-2 do what one
process does.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ptl_fast.demo.problems import generate
from support.files import write_rows

FLAGS = (
    "--rounds 2 --recovery-tokens 20000 --sequence-length 128 --global-batch 8 --micro-batch 4"
    " --calibration-tokens 4000"
)
FLAGS += " --eval-limit 20 --device cpu"


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
DEEPSPEED = ["deepspeed.launcher.runner", "--num_accelerators", "2", "--module"]


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [
        # distill: each rank reads its own rows of predictions that both wrote
        pytest.param(
            TORCHRUN,
            (
                f"{FLAGS} --recovery distill --score-during-recovery --scorer output-change"
                " --all-statistics"
            ),
            id="torchrun-distill",
        ),
        pytest.param(DEEPSPEED, FLAGS, id="deepspeed"),
    ],
)
@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="DeepSpeed compiles its CPU communication with g++, which is missing",
)
def test_two_ranks_with_zero2_equal_one_rank(
    launcher: list[str],
    flags: str,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    assert command_line(*flags.split(), "--output", "one").returncode == 0
    command = [
        sys.executable,
        "-m",
        *launcher,
        "ptl_fast.compress",
        *flags.split(),
        "--deepspeed",
        "zero2",
        "--output",
        "two",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Result: two/final") == 1, "only one rank reports"
    one, two = [load_file(tmp_path / run / "final" / "model.safetensors") for run in ("one", "two")]
    statistics = [
        load_file(tmp_path / run / "round-02" / "statistics.safetensors") for run in ("one", "two")
    ]
    assert statistics[0]["num_tokens"] == statistics[1]["num_tokens"], (
        "every token counts once, whichever rank has it"
    )
    assert statistics[0]["scores"].shape == statistics[1]["scores"].shape
    assert one.keys() == two.keys()
    plans = [(tmp_path / run / "round-01" / "plan.json").read_text() for run in ("one", "two")]
    assert plans[0] == plans[1], "the first round's decision rests on sums that both must get right"
    first = [
        load_file(tmp_path / run / "round-01" / "statistics.safetensors") for run in ("one", "two")
    ]
    for name, tensor in first[0].items():
        torch.testing.assert_close(first[1][name], tensor, rtol=1e-4, atol=1e-3, msg=name)
    for name, tensor in one.items():
        # Adam divides by the gradient's own size, so the rounding of a near-zero gradient can move
        # a weight by some steps
        distance = (tensor - two[name]).norm() / tensor.norm()
        assert distance < 0.02, (name, distance)


def test_two_ranks_spend_the_budget_as_one_does(
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """Plain data parallelism: both ranks end a round at the same step, keep the moments, and
    anticipate the same neurons.
    """
    flags = (
        f"{FLAGS} --recovery-split until-recovered --recovery-growth 1 --recovered-within 100"
        " --keep-optimizer-state"
    )
    flags += " --anticipate 1e-4"
    assert command_line(*flags.split(), "--output", "one").returncode == 0
    command = [
        sys.executable,
        "-m",
        *TORCHRUN,
        "ptl_fast.compress",
        *flags.split(),
        "--output",
        "two",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = [
        [json.loads((tmp_path / run / f"round-0{n}" / "recovery.json").read_text()) for n in (1, 2)]
        for run in ("one", "two")
    ]
    assert one[0]["recovery_tokens"] < 10000, "the first round ended early"
    for name in ("recovery_tokens", "recovery_steps"):
        assert [each[name] for each in one] == [each[name] for each in two]
    weights = [load_file(tmp_path / run / "final" / "model.safetensors") for run in ("one", "two")]
    for name, tensor in weights[0].items():
        distance = (tensor - weights[1][name]).norm() / tensor.norm()
        assert distance < 0.02, (name, distance)


@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="DeepSpeed compiles its CPU communication with g++, which is missing",
)
def test_two_ranks_reinforce_two_rounds_and_go_on_where_they_were_killed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """ZeRO-2; killed -9 inside the second round's reinforcement, and started again."""
    data = write_rows(tmp_path / "data.jsonl", *generate(300, 0, "training"))
    flags = (
        f"--model ptl-demo --data {data} --rounds 2 --recovery grpo --sequence-length 128"
        " --calibration-tokens 1000"
    )
    flags += (
        " --keep 0.5 --width-multiple 32 --micro-batch 8 --gradient-checkpointing false"
        " --grpo-prompt-tokens 64"
    )
    flags += (
        " --eval-tasks nll --eval-limit 4 --device cpu --grpo-steps 2 --grpo-prompts 4"
        " --grpo-rollouts 4 --grpo-kl 0.01"
    )
    flags += (
        " --grpo-response-tokens 24 --grpo-learning-rate 1e-4 --checkpoint-minutes 0"
        " --deepspeed zero2 --output run"
    )
    command = [sys.executable, "-m", *TORCHRUN, "ptl_fast.compress", *flags.split()]
    process = psutil.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(
        tmp_path.glob("run/round-02/recovery/checkpoint-1/complete")
    ):
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    for each in [
        process,
        *process.children(recursive=True),
    ]:  # the launcher first: it would end the ranks gently
        each.kill()
    process.wait()
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "continuing after round 1 of 2" in result.stdout
    records = json.loads((tmp_path / "run" / "report.json").read_text())["rounds"]
    for record in records:
        assert (record["grpo"]["steps"], len(record["grpo"]["reward"])) == (2, 2), (
            "each step once, also the one before the kill"
        )
        assert record["grpo"]["kl"][0] == pytest.approx(0, abs=1e-4)


@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="DeepSpeed compiles its CPU communication with g++, which is missing",
)
def test_two_ranks_with_zero3_have_whole_weights_between_recoveries(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Text, reinforcement and pruning follow one another in one process; ZeRO-3 spreads the weights
    anew each time.
    """
    data = write_rows(tmp_path / "data.jsonl", *generate(300, 0, "training"))
    flags = (
        f"--model ptl-demo --data {data} --rounds 2 --recovery cpt,grpo --recovery-tokens 3000"
        " --sequence-length 128"
    )
    flags += (
        " --calibration-tokens 1000 --keep 0.5 --width-multiple 32 --gradient-checkpointing"
        " false --grpo-prompt-tokens 64"
    )
    flags += (
        " --global-batch 4 --micro-batch 8 --eval-tasks nll --eval-limit 4 --device cpu"
        " --grpo-steps 1 --grpo-prompts 4"
    )
    flags += (
        " --grpo-rollouts 4 --grpo-kl 0.01 --grpo-response-tokens 24 --grpo-learning-rate"
        " 1e-5 --deepspeed zero3 --output run"
    )
    command = [sys.executable, "-m", *TORCHRUN, "ptl_fast.compress", *flags.split()]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    dense = report["dense"]["eval"]["nll"]["nll"]
    for record in report["rounds"]:
        assert record["recovery_steps"] > 0
        assert record["grpo"]["kl"][0] == pytest.approx(0, abs=1e-4), (
            "the reference has the weights that text left"
        )
        assert record["eval"]["nll"]["nll"] < dense + 0.3, (
            "random or missing weights would be far above"
        )
    weights = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert weights["model.layers.0.mlp.up_proj.weight"].shape == (report["final"]["width"], 128)

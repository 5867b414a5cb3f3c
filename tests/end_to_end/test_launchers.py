"""Two real processes do what one process does, with DeepSpeed's ZeRO-2 and ZeRO-3 and without
DeepSpeed: under the torchrun and deepspeed launchers and, to save their start, as torchrun would
start them.
"""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ptl_fast.demo.problems import generate
from support.files import write_rows
from support.forked_python import forked_python
from support.ranks import kill_ranks_at, run_ranks
from support.runs import RUN, as_flags, main

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
DEEPSPEED = ["deepspeed.launcher.runner", "--num_accelerators", "2", "--module"]
Launch = Callable[..., subprocess.CompletedProcess[str]]

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="DeepSpeed compiles its CPU communication with g++, which is missing",
)


def command(launcher: list[str], settings: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", *launcher, "ptl_fast.compress", *as_flags(settings)]


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    with forked_python() as program:
        yield str(program)


@pytest.fixture
def launch(environment: dict[str, str], python: str, tmp_path: Path) -> Launch:
    """Run these settings on two ranks, to the end. torchrun starts its ranks, as its documentation
    says, by PYTHON_EXEC: by ours, which begins at once. DeepSpeed's launcher knows no other than
    its own.
    """

    def run(launcher: list[str], settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command(launcher, settings),
            cwd=tmp_path,
            env={**environment, "PYTHON_EXEC": python},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result

    return run


def assert_alike(one: Path, two: Path) -> None:
    """Adam divides by the gradient's own size, so the rounding of a near-zero gradient can move a
    weight by some steps.
    """
    first, second = (load_file(run / "final" / "model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        distance = (tensor - second[name]).norm() / tensor.norm()
        assert distance < 0.02, (name, distance)


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        # distill: each rank reads its own rows of predictions that both wrote
        pytest.param(
            TORCHRUN,
            {
                "recovery": "distill",
                "score_during_recovery": True,
                "scorer": "output-change",
                "all_statistics": True,
            },
            id="torchrun-distill",
        ),
        pytest.param(DEEPSPEED, {}, id="deepspeed"),
    ],
)
@needs_compiler
def test_two_ranks_with_zero2_equal_one_rank(
    launcher: list[str],
    settings: dict[str, Any],
    tiny_run: dict[str, str],
    launch: Launch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**tiny_run, **RUN, "rounds": 2, **settings}
    assert main(as_flags({**settings, "output": "one"})) == 0
    result = launch(launcher, {**settings, "deepspeed": "zero2", "output": "two"})
    assert result.stdout.count("Result: two/final") == 1, "only one rank reports"
    runs = [tmp_path / run for run in ("one", "two")]
    statistics = [load_file(run / "round-02" / "statistics.safetensors") for run in runs]
    assert statistics[0]["num_tokens"] == statistics[1]["num_tokens"], (
        "every token counts once, whichever rank has it"
    )
    assert statistics[0]["scores"].shape == statistics[1]["scores"].shape
    plans = [(run / "round-01" / "plan.json").read_text() for run in runs]
    assert plans[0] == plans[1], "the first round's decision rests on sums that both must get right"
    first = [load_file(run / "round-01" / "statistics.safetensors") for run in runs]
    for name, tensor in first[0].items():
        torch.testing.assert_close(first[1][name], tensor, rtol=1e-4, atol=1e-3, msg=name)
    assert_alike(*runs)


def test_two_ranks_spend_the_budget_as_one_does(
    tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain data parallelism: both ranks end a round at the same step, keep the moments, and
    anticipate the same neurons.
    """
    monkeypatch.chdir(tmp_path)
    until = {"recovery_split": "until-recovered", "recovery_growth": 1.0, "recovered_within": 100.0}
    kept = {"keep_optimizer_state": True, "anticipate": 1e-4}
    settings = {**tiny_run, **RUN, **until, **kept, "rounds": 2}
    assert main(as_flags({**settings, "output": "one"})) == 0
    run_ranks({**settings, "output": "two"}, tmp_path)
    one, two = [
        [json.loads((tmp_path / run / f"round-0{n}" / "recovery.json").read_text()) for n in (1, 2)]
        for run in ("one", "two")
    ]
    assert one[0]["recovery_tokens"] < 6000, "the first round ended early"
    for name in ("recovery_tokens", "recovery_steps"):
        assert [each[name] for each in one] == [each[name] for each in two]
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_two_nodes_that_meet_by_rendezvous_equal_one(
    tiny_run: dict[str, str], environment: dict[str, str], python: str, tmp_path: Path
) -> None:
    """Two launchers of one rank each, on one machine."""
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery_tokens": 4000}
    run_ranks({**settings, "output": "one"}, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    node = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    node += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "-m"]
    nodes = [
        subprocess.Popen(
            command(node, {**settings, "output": "two"}),
            cwd=tmp_path,
            env={**environment, "PYTHON_EXEC": python},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [each.communicate(timeout=600) for each in nodes]
    assert [each.returncode for each in nodes] == [0, 0], ended
    told = "".join(out for out, _ in ended)
    assert told.count("Result: two/final") == 1, "only one rank reports"
    runs = [tmp_path / run / "final" / "model.safetensors" for run in ("one", "two")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


@pytest.fixture
def reinforced(tmp_path: Path) -> dict[str, Any]:
    """Two rounds of the bundled model with two steps of reinforcement learning each."""
    return {
        "model": "ptl-demo",
        "data": write_rows(tmp_path / "data.jsonl", *generate(300, 0, "training")),
        "rounds": 2,
        "recovery": "grpo",
        "sequence_length": 128,
        "calibration_tokens": 1000,
        "keep": 0.5,
        "width_multiple": 32,
        "micro_batch": 8,
        "gradient_checkpointing": False,
        "eval_tasks": "nll",
        "eval_limit": 4,
        "device": "cpu",
        "grpo_steps": 2,
        "grpo_prompts": 4,
        "grpo_rollouts": 4,
        "grpo_kl": 0.01,
        "grpo_prompt_tokens": 64,
        "grpo_response_tokens": 24,
        "grpo_learning_rate": 1e-4,
        "output": "run",
    }


@needs_compiler
def test_two_ranks_reinforce_two_rounds_and_go_on_where_they_were_killed(
    reinforced: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ZeRO-2; killed -9 inside the second round's reinforcement, and started again."""
    settings = {**reinforced, "checkpoint_minutes": 0, "deepspeed": "zero2"}
    kill_ranks_at("run/round-02/recovery/checkpoint-1/complete", settings, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(as_flags(settings)) == 2, "one process would restart Adam"
    told = capsys.readouterr().err
    assert "begun with DeepSpeed on 2 ranks and would go on without DeepSpeed" in told
    assert "continuing after round 1 of 2" in run_ranks(settings, tmp_path)
    records = json.loads((tmp_path / "run" / "report.json").read_text())["rounds"]
    for record in records:
        assert (record["grpo"]["steps"], len(record["grpo"]["reward"])) == (2, 2), (
            "each step once, also the one before the kill"
        )
        assert record["grpo"]["kl"][0] == pytest.approx(0, abs=1e-4)


def test_two_ranks_distil_on_policy_as_one_does_and_go_on_where_they_were_killed(
    reinforced: dict[str, Any], tmp_path: Path
) -> None:
    """Plain data parallelism, and answers so near to greedy that they do not depend on the ranks'
    seeds. Killed -9 inside the second round's training, and started again, two ranks end
    bit-identical.
    """
    settings = {
        **{name: value for name, value in reinforced.items() if not name.startswith("grpo")},
        "recovery": "opd",
        "opd_steps": 3,
        "opd_prompts": 8,
        "opd_temperature": 1e-4,
        "opd_prompt_tokens": 64,
        "opd_max_tokens": 24,
        "opd_learning_rate": 1e-4,
    }
    run_ranks({**settings, "output": "one"}, tmp_path, num_ranks=1)
    run_ranks({**settings, "output": "two"}, tmp_path)
    often = {**settings, "checkpoint_minutes": 0}
    kill_ranks_at("run/round-02/recovery/checkpoint-[23]/complete", often, tmp_path)
    assert "continuing after round 1 of 2" in run_ranks(often, tmp_path)
    curves = [
        [
            record["opd"]
            for record in json.loads((tmp_path / run / "report.json").read_text())["rounds"]
        ]
        for run in ("one", "two", "run")
    ]
    assert curves[1] == curves[2], "each step once, also those before the kill"
    for one, two in zip(curves[0], curves[1], strict=True):
        assert two["response_tokens"] == one["response_tokens"]
        assert two["divergence"] == pytest.approx(one["divergence"], abs=2e-3)
    assert_alike(tmp_path / "one", tmp_path / "two")
    weights = [(tmp_path / run / "final" / "model.safetensors") for run in ("two", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@needs_compiler
def test_two_ranks_with_zero3_have_whole_weights_between_recoveries(
    reinforced: dict[str, Any], tmp_path: Path
) -> None:
    """Text, reinforcement and pruning follow one another in one process; ZeRO-3 spreads the weights
    anew each time.
    """
    own = {"recovery": "cpt,grpo", "recovery_tokens": 3000, "global_batch": 4, "grpo_steps": 1}
    own |= {"grpo_learning_rate": 1e-5, "deepspeed": "zero3"}
    run_ranks({**reinforced, **own}, tmp_path)
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

"""Dry runs: what they print, that they need neither network nor weights, and what their numbers
rest on.
"""

import itertools
import json
import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.documents import flops_table
from ptl_fast.config.presets import shipped_config
from ptl_fast.model import flops
from ptl_fast.run import dry_run as estimates
from ptl_fast.run import recovery_costs, this_machine
from ptl_fast.run.dry_run import dry_run
from ptl_fast.run.gpus import GPUS
from ptl_fast.run.start import parse
from support.models import DEMO_MODEL
from support.presets import TARGETS
from support.recovery import config, opd_config
from support.runs import main
from support.settings import settings

ALONE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a dry run asked the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from ptl_fast.compress import main
code = main(sys.argv[1:])
assert not {"torch", "transformers"} & set(sys.modules), "a dry run imported what takes seconds"
sys.exit(code)
"""


def cells(text: str) -> list[dict[str, str]]:
    """The rows of the dry run's table, by column."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize("preset", TARGETS)
def test_dry_run_needs_no_network_no_weights_and_no_torch(
    preset: str, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", ALONE, "--preset", preset, "--dry-run"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    dense, *rounds = cells(result.stdout)
    assert dense["round"] == "dense"
    assert (int(rounds[-1]["width"]), int(rounds[-1]["layers"])) == TARGETS[preset]
    for row in rounds:
        assert float(row["hours"]) >= 0
        assert float(row["train GiB"]) >= float(row["serve GiB"])
        assert int(row["recovery tokens"].replace(",", "")) > 0
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_papers_flops(capsys: pytest.CaptureFixture[str]) -> None:
    """9.1 T on GSM8K for Llama3-8B, 8.5 T on Minerva Math, 2.8 T on MBPP; PTL-5B 6.3 T to 3%."""
    assert main(["--preset", "llama3-8b-paper", "--dry-run"]) == 0
    output = capsys.readouterr().out
    dense, *_, last = cells(output)
    assert dense["GSM8K (637)"] == "9.104T"
    assert (dense["Minerva Math (596)"], dense["MBPP (199)"]) == ("8.506T", "2.799T")
    assert float(last["GSM8K (637)"].removesuffix("T")) == pytest.approx(6.3, rel=0.03)
    assert "on 4xA100-80GB, assuming 40% of 312 TFLOP/s each" in output


def test_dry_run_without_data_knows_no_hours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "Qwen/Qwen2.5-7B", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert {row["hours"] for row in cells(output)[1:]} == {"?"}
    assert "Recovery hours need --recovery-tokens" in output
    assert main(["--model", "Qwen/Qwen2.5-7B", "--dry-run", "--recovery", "none"]) == 0
    text = capsys.readouterr().out
    assert "--recovery none: nothing is trained" in text
    assert "Training:" not in text
    assert "hours" not in text
    assert not {"train GiB", "recovery tokens"} & cells(text)[0].keys()


def test_dry_run_is_about_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = replace(GPUS["H200"], tflops=0.05, memory_gib=2, name="CPU, 3 threads, 50 GFLOP/s")
    monkeypatch.setattr(this_machine, "found", lambda: (1, slow))
    assert main(["--model", "Qwen/Qwen2.5-7B", "--dry-run", "--recovery-tokens", "100000"]) == 0
    output = capsys.readouterr().out
    assert "hours on this machine (CPU, 3 threads, 50 GFLOP/s), assuming 40% of 0.05 TF" in output
    assert "on a GPU or machine that has 2:" in output
    assert "Stages of all rounds together" in output
    hours = sum(float(row["hours"]) for row in cells(output)[1:])
    assert hours == pytest.approx(100_000 * 4 * 2 * 6.5e9 / (0.05e12 * 0.4) / 3600, rel=0.25)


def test_dry_run_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, columns in ((80, 6), (110, 9), (None, 13)):
        monkeypatch.setattr(estimates, "columns", lambda width=width: width)
        assert main(["--preset", "demo", "--dry-run"]) == 0
        table = capsys.readouterr().out.partition("\n\n")[0].splitlines()
        assert max(map(len, table)) <= (width or 200)
        assert table[0].count("|") - 1 == columns


def test_dry_run_says_when_training_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "Qwen/Qwen2.5-7B", "--dry-run"]
    assert main([*flags, "--dry-run-gpus", "1xA100-80GB"]) == 0
    assert (
        "on a GPU or machine that has 80: use more GPUs, or --deepspeed" in capsys.readouterr().out
    )
    assert main([*flags, "--deepspeed", "zero2", "--dry-run-gpus", "4xA100-80GB"]) == 0
    assert "on a GPU or machine that has" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dry-run-gpus", "4xT4"], "--dry-run-gpus 4xT4 is not COUNTxNAME"),
        (["--dry-run-gpus", "0xH200"], "--dry-run-gpus 0xH200 is not COUNTxNAME"),
        (["--recovery", "hope"], "unknown --recovery hope; choose none, cpt"),
        (["--deepspeed", "zero9"], "--deepspeed zero9: no such file"),
        (["--keep", "0.001"], "--keep 0.001 of 18944 neurons rounds to zero width"),
    ],
)
def test_dry_run_refuses_what_it_cannot_predict(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "Qwen/Qwen2.5-7B", "--dry-run", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_real_run_needs_the_real_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shipped numbers must not stand in for a model that cannot be had."""
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "data.jsonl", "--deepspeed", "zero2"]
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["--model", "google/gemma-2-9b", *flags]) == 2
    assert "--model google/gemma-2-9b cannot be loaded" in capsys.readouterr().err


def test_dry_run_and_real_run_count_the_demo_alike() -> None:
    from ptl_fast.model import loading

    config: Any = shipped_config("ptl-demo")
    assert flops.model_size(config, 100) == flops.model_size(loading.load_config("ptl-demo"), 100)
    assert cells(dry_run(parse(["--dry-run"])))[0]["parameters"] == "1.417M"


def test_prompt_lengths_are_those_that_give_the_papers_flops() -> None:
    for preset, benchmarks in flops_table.PAPER.items():
        _, config, _ = flops_table.dry_run_of(preset)
        for benchmark, (original, _, _) in benchmarks.items():
            length = flops_table.sample_length(config, original, lm_head=False)
            assert estimates.PROMPT_TOKENS[config.model_type][benchmark] == length


def test_committed_document_is_what_the_counts_give(tmp_path: Path) -> None:
    flops_table.main(["--check"])
    stale = tmp_path / "paper.md"
    stale.write_text(flops_table.DOCUMENT.read_text().replace("-1.8%", "-0.8%", 1))
    with pytest.raises(SystemExit):
        flops_table.main(["--check", "--document", str(stale)])


def test_serving_is_weights_and_cache() -> None:
    """Llama3-8B: 2 bytes a parameter, and 128 KiB a token: keys and values of 32 layers x 8 heads x
    128 x 2 bytes.
    """
    config: Any = shipped_config("meta-llama/Meta-Llama-3-8B")
    assert estimates.serving_bytes(config) == 2 * 8_030_261_248 + 4096 * 128 * 1024


def test_dry_run_counts_the_teachers_pass() -> None:
    """One forward pass of the original for a token, whatever the student's size."""
    dense = types.SimpleNamespace(**json.loads((DEMO_MODEL / "config.json").read_text()))
    smaller = flops.resized(dense, 192, 4)
    plans = [
        config(dry_run=True, recovery=name, sequence_length=256, dry_run_gpus="1xA100-80GB")
        for name in ("cpt", "distill")
    ]
    cpt_hours, distill_hours = (
        estimates.predict(smaller, dense, plan, plan.recovery.recoveries, 10**9)["recovery_hours"]
        for plan in plans
    )
    teacher_flops = flops.flops_per_sample(dense, 256, causal=True) / 256 * 1e9
    assert distill_hours - cpt_hours == pytest.approx(
        recovery_costs.hours(teacher_flops, *estimates.chosen("1xA100-80GB"))
    )


def test_dry_run_says_what_weights_of_tokens_cost(capsys: pytest.CaptureFixture[str]) -> None:
    """Three forward passes of the model before each round that removes neurons; none for layers."""
    flags = ["--preset", "llama3-8b", "--dry-run", "--token-weights", "divergence"]
    assert main([*flags, "--calibration-tokens", "100000000"]) == 0
    text = capsys.readouterr().out
    gflops = [
        float(before["FLOPs/token"].removesuffix("G"))
        for before, after in itertools.pairwise(cells(text))
        if "neurons" in after["round"]
    ]
    assert len(gflops) == 5
    expected = recovery_costs.hours(3e8 * 1e9 * sum(gflops), *estimates.chosen("4xA100-80GB"))
    found = re.search(r"--token-weights divergence: .* removes neurons, (.+) hours in all", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(expected, rel=0.05)
    assert main(["--preset", "llama3-8b", "--dry-run"]) == 0
    assert "--token-weights" not in capsys.readouterr().out


def test_judging_teacher_stays_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """The original's size, beside the pruned model's training; a teacher on disk takes none."""
    demo: Any = shipped_config("ptl-demo")
    smaller = flops.resized(demo, 192, 4)
    judged, cached = (
        recovery_costs.training_bytes(
            smaller, demo, opd_config("teacher", recovery=name, dry_run_gpus="1xH200"), 1
        )
        for name in ("opd", "distill")
    )
    assert judged - cached == 2 * 1_416_576
    flags = "--model ptl-demo --keep 0.5 --rounds 2 --dry-run --recovery cpt,opd"
    lengths = "--sequence-length 256 --opd-prompt-tokens 128 --opd-max-tokens 128"
    assert main([*flags.split(), *lengths.split(), "--recovery-tokens", "9000"]) == 0
    text = capsys.readouterr().out
    assert "Recovery hours need --opd-steps" in text
    assert "With opd the teacher stays in memory beside the model" in text


def test_dry_run_takes_the_gpus_rule() -> None:
    values: dict[str, Any] = {
        "model": "ptl-demo",
        "keep": 0.5,
        "rounds": 2,
        "dry_run": True,
        "sequence_length": 256,
    }
    assert dry_run(settings(**values, width_multiple="auto")) == dry_run(
        settings(**values, width_multiple=128)
    )


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        (["--drop-layers", "1"], True),
        (["--drop-layers", "1", "--compensate-layers", "false"], False),
        ([], False),
    ],
)
def test_dry_run_says_what_folding_layers_costs(flags: list[str], passes: bool) -> None:
    text = dry_run(parse(["--preset", "demo", "--dry-run", *flags]))
    assert ("another pass over --calibration-tokens in each round that drops layers" in text) == (
        passes
    )


def test_dry_run_says_what_fitting_in_order_costs() -> None:
    said = "three more passes over --calibration-tokens in each round"
    assert said in dry_run(
        parse(["--preset", "demo", "--dry-run", "--compensate-inputs", "pruned"])
    )
    assert said not in dry_run(parse(["--dry-run"]))


def test_dry_run_says_what_own_traces_take(capsys: pytest.CaptureFixture[str]) -> None:
    """Every answer of a batch gets a token for one reading of the weights."""
    flags = ["--model", "ptl-demo", "--data", "x", "--dry-run", "--rounds", "2"]
    flags += ["--recovery-split", "equal", "--width-multiple", "32", "--sequence-length", "32"]
    flags += ["--global-batch", "1", "--recovery-tokens", "3000000000"]
    assert main(flags) == 0
    assert "Own traces" not in capsys.readouterr().out
    assert main([*flags, "--traces", "--traces-batch", "10", "--dry-run-gpus", "2xH200"]) == 0
    output = capsys.readouterr().out
    assert "at most 3,000,000,000 tokens that are kept" in output
    # 1,416,832 parameters of 2 bytes, 150 million steps, 40% of 4.8 TB/s
    (hours,) = re.findall(r"before the first round; (\S+) hours on 2xH200", output)
    assert float(hours) == pytest.approx(1416832 * 2 * 150e6 / (4.8e12 * 0.4) / 3600, abs=0.05)
    assert main([*flags, "--traces", "--traces-every-round", "--traces-number", "100"]) == 0
    # 256 of the model's 512 positions each
    output = capsys.readouterr().out
    assert "at most 25,600 tokens that are kept" in output
    assert "first round and 12,800 before later rounds" in output

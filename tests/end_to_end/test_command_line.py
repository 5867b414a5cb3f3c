"""The command line as a user types it: quick help, bad input in one line with exit code 2, nothing
half-written.
"""

import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ptl_fast.config.config import Config
from ptl_fast.run import start
from support.files import write_data
from support.models import DEMO_MODEL
from support.runs import main

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def test_help_answers_within_two_seconds(command_line: CommandLine) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = command_line("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of processor time: other processes may have the processor meanwhile
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert result.returncode == 0
    stable = (
        "model data protect keep neurons-per-round rounds drop-layers order scorer layer-scorer"
        " width-multiple recovery"
        " recovery-tokens eval-tasks allow-code-execution output overwrite seed dtype device attn"
        " deepspeed dry-run debug preset"
        " config"
    )
    for name in stable.split():
        assert f"--{name}" in result.stdout, name


BAD_INPUT = [
    pytest.param(
        ["--model", "nowhere", "--data", "data.jsonl"],
        r"--model nowhere cannot be loaded: no such folder",
        id="no-model",
    ),
    pytest.param(
        ["--model", "empty", "--data", "data.jsonl"],
        r"empty is not a model folder: it has no config.json",
        id="non-model",
    ),
    pytest.param(
        ["--model", "bloom", "--data", "data.jsonl"],
        r"not supported: neurons cannot be removed",
        id="architecture",
    ),
    pytest.param(["--model", "ptl-demo"], r"--data is missing", id="no-data-flag"),
    pytest.param(["--data", "nowhere.jsonl"], r"no file nowhere.jsonl", id="no-data"),
    pytest.param(["--data", "empty.jsonl"], r"empty.jsonl is empty", id="empty-data"),
    pytest.param(
        ["--data", "malformed.jsonl"],
        r"malformed.jsonl line 2 is not valid JSON",
        id="malformed-data",
    ),
    pytest.param(
        ["--data", "columns.jsonl"],
        r"columns.jsonl line 1 has the columns a, b; expected",
        id="wrong-column",
    ),
    pytest.param(
        ["--data", "short.jsonl"], r"too few for 4 rounds|less than one sequence", id="short-data"
    ),
    pytest.param(
        ["--data", "data.jsonl@2,short.jsonl"],
        r"give every source a weight .* or none",
        id="half-weighted",
    ),
    pytest.param(
        ["--data", "data.jsonl@-1"], r"'-1' after the @ is no positive weight", id="negative-weight"
    ),
    pytest.param(
        ["--data", "data.jsonl,nowhere.txt"],
        r"no file nowhere.txt .*commas separate sources",
        id="no-second-source",
    ),
    pytest.param(
        ["--data", "data.jsonl:train"],
        r"a file has no configurations or splits",
        id="split-of-a-file",
    ),
    pytest.param(
        ["--data", "data.jsonl", "--text-column", "txt"],
        r"line 1 .*--text-column txt does not fit",
        id="column-flag",
    ),
    pytest.param(
        ["--template", "papre"], r"unknown --template 'papre'; choose lines, paper", id="template"
    ),
    pytest.param(
        ["--model", "ptl-demo", "--data", "data.jsonl", "--streaming"],
        r"--streaming reads only .*--recovery-tokens",
        id="streaming",
    ),
    pytest.param(["--keep", "0"], r"--keep 0.0 is outside \(0, 1\]", id="keep-0"),
    pytest.param(["--keep", "1.5"], r"--keep 1.5 is outside \(0, 1\]", id="keep-above-1"),
    pytest.param(["--keep", "nan"], r"keep.*nan", id="keep-nan"),
    pytest.param(
        ["--keep", "0.01"], r"rounds to zero width with --width-multiple 32", id="zero-width"
    ),
    pytest.param(["--drop-layers", "4"], r"leaves none of the model's 4 layers", id="every-layer"),
    pytest.param(
        ["--data", "data.jsonl", "--output", "other"],
        r"other exists and is not a run",
        id="output-of-something-else",
    ),
    pytest.param(
        ["--data", "data.jsonl", "--output", "data.jsonl"],
        r"data.jsonl exists and is not a run",
        id="output-is-a-file",
    ),
    pytest.param(
        ["--scorer", "best"], r"unknown --scorer best; choose reconstruction,", id="scorer"
    ),
    pytest.param(
        ["--layer-scorer", "best"],
        r"unknown --layer-scorer best; choose residual,",
        id="layer-scorer",
    ),
    pytest.param(
        ["--recovery", "hope"], r"unknown --recovery hope; choose none, cpt", id="recovery"
    ),
    pytest.param(
        ["--eval-tasks", "nll,unknown_task"], r"unknown evaluation task unknown_task", id="task"
    ),
    pytest.param(
        ["--data", "data.jsonl", "--eval-tasks", "nll=nowhere.jsonl"],
        r"no file nowhere.jsonl",
        id="task-file",
    ),
    pytest.param(
        ["--eval-tasks", "ptl_mbpp=data.jsonl"],
        r"runs the code.*; allow it with --allow-code-execution",
        id="code",
    ),
    pytest.param(["--preset", "best"], r"unknown --preset best; choose demo", id="preset"),
    pytest.param(
        ["--deepspeed", "zero9"],
        r"--deepspeed zero9: no such file; choose zero2",
        id="deepspeed",
    ),
    pytest.param(["--device", "cuda:99"], r"--device cuda:99 is not present", id="device"),
    pytest.param(
        ["--data", "data.jsonl", "--attn", "flash_attention_2"],
        r"--attn flash_attention_2 cannot be used here",
        id="attention",
    ),
    pytest.param(["--device", "tpu"], r"unknown --device tpu", id="unknown-device"),
    pytest.param(
        ["--rounds", "zero"], r"--rounds zero: a whole number is needed", id="not-a-number"
    ),
    pytest.param(
        ["--width-multiple", "x"],
        r"--width-multiple x: a whole number or auto is needed",
        id="not-a-multiple",
    ),
    pytest.param(
        ["--fused-ffn", "maybe"], r"--fused-ffn maybe: true or false is needed", id="not-a-boolean"
    ),
    pytest.param(["--eval-tasks", "[]"], r"--eval-tasks names no task", id="no-task"),
    pytest.param(
        ["--recovery-growth", "1e300", "--dry-run"],
        r"--recovery-growth 1e\+300 is outside",
        id="growth",
    ),
    pytest.param(
        ["--sequence-length", "1"], r"--sequence-length 1 must be at least 2", id="one-token"
    ),
    pytest.param(
        ["--sequence-length", "9999", "--dry-run"],
        r"9999 tokens are more than the 512 positions",
        id="dry-run-length",
    ),
    pytest.param(
        ["--deepspeed", "auto.json", "--dry-run"], r"its ZeRO stage is auto", id="dry-run-stage"
    ),
    pytest.param(
        ["--deepspeed", "data.jsonl", "--dry-run"],
        r"data.jsonl is no JSON file",
        id="dry-run-deepspeed",
    ),
    pytest.param(
        ["--data", "columns.jsonl", "--question-column", "a"],
        r"beside a, .*name it with --answer-column",
        id="half-named",
    ),
    pytest.param(
        ["--data", "lines.txt", "--eval-tasks", "nll"], r"blank lines separate", id="lines"
    ),
    pytest.param(
        ["--data", "data.jsonl", "--output", "data.jsonl/run"],
        r"data.jsonl is no folder that you may write to",
        id="output-below-a-file",
    ),
    pytest.param(["--rounds", "0"], r"--rounds 0 must be at least 1", id="no-rounds"),
    pytest.param(["--order", "sideways"], r"order", id="order"),
    pytest.param(["--config", "nowhere.yaml"], r"nowhere.yaml", id="config-file"),
    pytest.param(["--unknown-flag", "1"], r"unknown-flag", id="unknown-flag"),
    pytest.param(
        ["--global-batch", "5", "--micro-batch", "2"],
        r"--global-batch 5 is no multiple",
        id="batch",
    ),
]


@pytest.mark.parametrize(("flags", "message"), BAD_INPUT)
def test_bad_input_is_one_clear_line(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, for speed; test_bad_input_exits_with_2 shows it of the real command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_data(tmp_path / "data.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bloom").mkdir()
    (tmp_path / "bloom" / "config.json").write_text('{"model_type": "bloom"}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "auto.json").write_text('{"zero_optimization": {"stage": "auto"}}')
    (tmp_path / "lines.txt").write_text("one and one are two\n" * 3000)
    (tmp_path / "malformed.jsonl").write_text('{"text": "a"}\n{"text": "a\n')
    (tmp_path / "columns.jsonl").write_text('{"a": 1, "b": 2}\n')
    (tmp_path / "short.jsonl").write_text('{"question": "1?", "answer": "2"}\n' * 3)
    if not {"--model", "--preset", "--config"} & set(flags):
        flags = ["--preset", "demo", *flags]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    lines = [line for line in captured.err.strip().replace("\r", "\n").splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert re.search(message, lines[0]), lines[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_names_the_flags(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Config, quiet: bool) -> None:
        raise error

    monkeypatch.setattr(start, "run", fail)
    assert main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory: ")
    assert all(
        flag in told for flag in ("--micro-batch", "--eval-batch", "--gradient-checkpointing true")
    )


def test_bad_input_exits_with_2(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line("--keep", "2")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "error: --keep 2.0 is outside (0, 1]; it is the fraction of FFN neurons that stay, for"
        " example 0.65"
    )
    assert "Traceback" in command_line("--keep", "2", "--debug").stderr
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_name_the_layer_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    with torch.no_grad():
        model.model.layers[2].mlp.gate_proj.weight[:] = float("inf")
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "model")
    flags = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(write_data(tmp_path / "data.jsonl")),
        "--recovery-tokens",
        "9000",
        "--device",
        "cpu",
    ]
    shape = [
        "--sequence-length",
        "128",
        "--width-multiple",
        "32",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(flags + shape) == 2
    assert "layer 2's activations are NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_the_schedule_and_writes_nothing(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line("--preset", "demo", "--dry-run", "--drop-layers", "1")
    assert result.returncode == 0, result.stderr
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in result.stdout.splitlines()
        if line.startswith("|")
    ]
    assert rows[2][:3] == ["dense", "768", "4"]
    assert rows[-1][:3] == ["5 layers", "384", "3"]
    assert list(tmp_path.iterdir()) == []

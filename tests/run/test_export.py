"""Exports: llama.cpp's tools get the right words, and what it would misread is refused."""

import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptl_fast.run import export

CONVERTER = """
import pathlib, sys
model, _, file, _, kind = sys.argv[1:]
assert (pathlib.Path(model) / "config.json").is_file()
pathlib.Path(file).write_text(f"GGUF {kind}")
"""
QUANTIZER = """#!/bin/sh
printf '%s as %s' "$(cat "$1")" "$3" > "$2"
"""


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Path:
    """A folder with tools that write down what they are asked."""
    folder = tmp_path / "llama.cpp"
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    quantizer = folder / "build" / "bin" / "llama-quantize"
    quantizer.write_text(QUANTIZER)
    quantizer.chmod(quantizer.stat().st_mode | stat.S_IXUSR)
    return folder


def finished(folder: Path, **config: object) -> Path:
    """A run's folder whose result has this config."""
    (folder / "final").mkdir(parents=True)
    config = {"model_type": "llama", "dtype": "bfloat16", **config}
    (folder / "final" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("flags", "name", "content"),
    [
        pytest.param([], "small-bf16.gguf", "GGUF bf16", id="own-type"),
        pytest.param(["--quantize", "q8_0"], "small-q8_0.gguf", "GGUF q8_0", id="by-the-converter"),
        pytest.param(
            ["--quantize", "q4_0"], "small-q4_0.gguf", "GGUF bf16 as Q4_0", id="in-groups-of-32"
        ),
        pytest.param(
            ["--quantize", "q4_k_m"], "small-q4_k_m.gguf", "GGUF bf16 as Q4_K_M", id="by-quantize"
        ),
    ],
)
def test_the_tools_write_the_file(
    flags: list[str], name: str, content: str, llama_cpp: Path, tmp_path: Path
) -> None:
    run = finished(tmp_path / "small")
    words = [str(run), "--to", "gguf", "--llama-cpp", str(llama_cpp), "--no-check", *flags]
    assert export.main(words) == 0
    assert (run / name).read_text() == content
    assert sorted(file.name for file in run.iterdir()) == ["final", name]


def test_without_tools_the_message_says_how_to_install_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert export.main([str(finished(tmp_path / "small")), "--to", "gguf"]) == 2
    told = capsys.readouterr().err
    assert "convert_hf_to_gguf.py is not on PATH" in told
    assert "git clone" in told
    assert "--target llama-quantize" in told


def test_a_model_that_llama_cpp_would_misread_is_refused(
    llama_cpp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["full_attention", "sliding_attention"]
    run = finished(tmp_path / "small", model_type="gemma2", sliding_window=8, layer_types=kinds)
    assert export.main([str(run), "--to", "gguf", "--llama-cpp", str(llama_cpp)]) == 2
    assert "llama.cpp cannot represent this model" in capsys.readouterr().err
    assert [file.name for file in run.iterdir()] == ["final"]


def test_experts_that_the_converter_has_no_place_for_are_refused_before_it_begins(
    llama_cpp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path / "small", model_type="qwen3_moe", mlp_only_layers=[1])
    assert export.main([str(run), "--to", "gguf", "--llama-cpp", str(llama_cpp)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "every layer has experts, and here some have none. The original has this too" in told[0]
    assert [file.name for file in run.iterdir()] == ["final"]


def test_a_tool_that_fails_is_named_with_its_last_word(
    llama_cpp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (llama_cpp / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such architecture')")
    run = finished(tmp_path / "small")
    assert export.main([str(run), "--to", "gguf", "--llama-cpp", str(llama_cpp)]) == 2
    assert "convert_hf_to_gguf.py: no such architecture" in capsys.readouterr().err
    assert [file.name for file in run.iterdir()] == ["final"]


def test_a_folder_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(tmp_path), "--to", "gguf"]) == 2
    assert "give a finished run's folder" in capsys.readouterr().err


def test_a_killed_export_leaves_no_tool_at_work(llama_cpp: Path, tmp_path: Path) -> None:
    waits = "import os, pathlib, time\npathlib.Path({!r}).write_text(str(os.getpid()))\n"
    told = tmp_path / "process"
    source = waits.format(f"{told}.tmp") + f"os.rename('{told}.tmp', '{told}')\ntime.sleep(60)\n"
    (llama_cpp / "convert_hf_to_gguf.py").write_text(source)
    words = [str(finished(tmp_path / "small")), "--to", "gguf", "--llama-cpp", str(llama_cpp)]
    command = [sys.executable, "-c", f"from ptl_fast.run.export import main; main({words!r})"]
    with subprocess.Popen(command) as process:
        until(told.exists)
        process.kill()
    until(lambda: not lives(told.read_text()))


def lives(process: str) -> bool:
    """Whether a process is there, and not only waits for whoever asks how it ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; an error if it does not within a minute."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["", "missing/model.gguf"])
def test_a_file_that_cannot_be_is_refused_before_the_conversion(
    name: str, llama_cpp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (llama_cpp / "convert_hf_to_gguf.py").write_text("raise SystemExit('it was converted')")
    words = [str(finished(tmp_path / "small")), "--to", "gguf", "--llama-cpp", str(llama_cpp)]
    assert export.main([*words, "--output", str(tmp_path / name)]) == 2
    assert "give --output a file's name" in capsys.readouterr().err

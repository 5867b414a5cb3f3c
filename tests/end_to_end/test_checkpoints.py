"""Whole runs on models that are stored otherwise; run and dry run refuse the same models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from support.configs import tiny_config
from support.files import write_data
from support.runs import main
from support.stored_models import (
    copy_demo,
    lora,
    write_adapter,
    write_fp8,
    write_fp8_mixture,
    write_mxfp4,
)

FLAGS = "--keep 0.5 --rounds 1 --recovery none --calibration-tokens 2048 --sequence-length 128"
FLAGS += " --eval-limit 10 --device cpu"


def run(model: Path, *flags: str) -> Any:
    """The exit code of a run in the current folder, on its data.jsonl."""
    if not Path("data.jsonl").exists():
        write_data(Path("data.jsonl"), 300)
    return main(["--model", str(model), "--data", "data.jsonl", *FLAGS.split(), *flags])


def test_an_fp8_model_ends_as_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_fp8(tmp_path / "fp8", tmp_path / "twin")
    assert run(tmp_path / "fp8", "--output", "a") == 0
    assert "stored as FP8, with a scale for each block" in capsys.readouterr().out
    assert run(tmp_path / "twin", "--output", "b") == 0
    one, other = (load_file(tmp_path / out / "final" / "model.safetensors") for out in "ab")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    configs = [(tmp_path / out / "final" / "config.json").read_text() for out in "ab"]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (write_fp8_mixture, "stored as FP8, with a scale for each block"),
        (write_mxfp4, "stored as MXFP4"),
    ],
)
def test_a_quantized_mixture_loses_experts_as_its_twin(
    write: Any,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "stored", tmp_path / "twin")
    flags = ["--keep-experts", "0.5", "--width-multiple", "4"]
    for name in ("stored", "twin"):
        tokenizer.save_pretrained(tmp_path / name)
        assert run(tmp_path / name, *flags, "--output", f"out-{name}") == 0
        assert (told in capsys.readouterr().out) == (name == "stored")
    finals = [tmp_path / f"out-{name}" / "final" for name in ("stored", "twin")]
    one, other = (load_file(final / "model.safetensors") for final in finals)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    configs = [(final / "config.json").read_text() for final in finals]
    assert configs[0] == configs[1]


def test_an_adapter_is_refused_until_its_merge_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_demo(tmp_path / "model")
    write_adapter(tmp_path / "model", lora(2))
    for flags in (["--output", "out"], ["--dry-run"]):
        assert run(tmp_path / "model", *flags) == 2
        assert "add --merge-adapter" in capsys.readouterr().err
    assert run(tmp_path / "model", "--dry-run", "--merge-adapter", "true") == 0
    assert "its LORA adapter is merged into the weights" in capsys.readouterr().out
    train_only = ["--keep", "1", "--output", "out", "--merge-adapter", "true"]
    assert run(tmp_path / "model", *train_only) == 0
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    adapter, before = lora(2), load_file(tmp_path / "model" / "model.safetensors")
    stem = "model.layers.1.mlp.down_proj"
    left, right = (adapter[f"base_model.model.{stem}.lora_{part}.weight"] for part in "BA")
    expected = before[f"{stem}.weight"] + 3 * left @ right
    torch.testing.assert_close(final.get_submodule(stem).weight.detach(), expected)


def test_changed_weights_and_settings_are_not_mixed_into_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = copy_demo(tmp_path / "model")
    file = tmp_path / "model" / "pytorch_model.bin"
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(weights, file)
    assert run(tmp_path / "model", "--output", "out") == 0
    # as if it had been killed in its first round
    for part in ("final", "round-01"):
        shutil.rmtree(tmp_path / "out" / part)
    torch.save({name: tensor * 0.7 for name, tensor in weights.items()}, file)
    assert run(tmp_path / "model", "--output", "out") == 2
    assert "holds a run on other data or weights" in capsys.readouterr().err
    torch.save(weights, file)
    config = tmp_path / "model" / "config.json"
    original = config.read_text()
    config.write_text(json.dumps({**json.loads(original), "rms_norm_eps": 0.1}))
    assert run(tmp_path / "model", "--output", "out") == 2
    assert "data or weights (config.json)" in capsys.readouterr().err
    config.write_text(original)
    assert run(tmp_path / "model", "--output", "out") == 0


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bitnet", "is not supported: neurons cannot be removed"),
        ("bert", "is not supported: its config says is_decoder false"),
        ("minicpm3", "cannot go: layer 1 depends on its number"),
    ],
)
def test_run_and_dry_run_refuse_alike_before_data_and_weights(
    model_type: str,
    reason: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder has no weights, and the data too few tokens."""
    monkeypatch.chdir(tmp_path)
    Path("none.jsonl").write_text('{"text": "a"}\n')
    tiny_config(model_type).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    said = []
    for flags in (["--output", "out"], ["--dry-run"]):
        command = ["--model", "model", "--data", "none.jsonl", "--sequence-length", "64", *flags]
        assert main([*command, "--drop-layers", "1", "--width-multiple", "8"]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].count("\n") == 1
    assert f"(model_type {model_type}) {reason}" in said[0]

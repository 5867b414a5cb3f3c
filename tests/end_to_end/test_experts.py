"""Whole runs on tiny mixtures of experts: pruned, trained, killed and continued, and loaded."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from support.files import write_data
from support.mixtures import EXPERT_WIDTH, make_mixture
from support.processes import kill_when
from support.runs import RUN, as_flags, main, without_seconds

HALF = {"keep": 0.5, "rounds": 2, "width_multiple": 4, "recovery_tokens": 4000}
RUNS = {
    "qwen3_moe": HALF,
    "gpt_oss": {**HALF, "ridge": "auto"},
    "deepseek_v3": {**HALF, "token_weights": "divergence"},
    "mixtral": {**HALF, "scorer": "output-change", "keep_optimizer_state": True, "fused_ffn": True},
}


def write_tiny(model_type: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Save a tiny model and data; returns the flags that name them."""
    make_mixture(model_type).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_data(folder / "data.jsonl", 300)
    return ["--model", "model", "--data", "data.jsonl", "--eval-tasks", "nll", "--eval-limit", "8"]


@pytest.mark.parametrize("model_type", list(RUNS))
def test_half_of_every_experts_neurons_go_in_two_rounds(
    model_type: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    input_ids: torch.Tensor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_tiny(model_type, tmp_path, tokenizer)
    flags = [*names, *as_flags({**RUN, **RUNS[model_type]})]
    assert main([*flags, "--output", "out"]) == 0
    assert "calibration tokens went to an expert" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    last = report["rounds"][-1]
    assert last["width"] == EXPERT_WIDTH // 2
    assert last["eval"]["nll"]["nll"] < last["eval_pruned"]["nll"]["nll"]
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    assert final.num_parameters() == report["final"]["num_parameters"]
    assert final.generate(input_ids, max_new_tokens=3, do_sample=False).shape == (3, 24)


def test_killed_run_goes_on_and_ends_bit_identical(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_tiny("qwen3_moe", tmp_path, tokenizer)
    flags = [*names, *as_flags({**RUN, **RUNS["qwen3_moe"]})]
    assert main([*flags, "--output", "undisturbed"]) == 0
    again = [*flags, "--output", "run"]
    for stage in ("round-01/plan.json", "round-02/recovery/checkpoint-*"):
        kill_when(f"run/{stage}", again, tmp_path)
    assert main(again) == 0
    runs = [tmp_path / "undisturbed", tmp_path / "run"]
    for name in ("final/model.safetensors", "round-02/statistics.safetensors"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert without_seconds(reports[0]) == without_seconds(reports[1])

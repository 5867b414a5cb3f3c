"""Whole runs on tiny mixtures of experts: pruned, trained, killed and continued, and loaded."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ptl_fast.model.widths import num_experts
from ptl_fast.run.tables import short
from support.files import write_data
from support.mixtures import EXPERT_WIDTH, NUM_EXPERTS, make_mixture
from support.processes import kill_when
from support.runs import RUN, as_flags, main, without_seconds

HALF = {"keep": 0.5, "rounds": 2, "width_multiple": 4, "recovery_tokens": 4000}
RUNS = {
    "qwen3_moe": HALF,
    "gpt_oss": {**HALF, "ridge": "auto"},
    "deepseek_v3": {**HALF, "token_weights": "divergence"},
    "mixtral": {**HALF, "scorer": "output-change", "keep_optimizer_state": True, "fused_ffn": True},
}
# a round of experts, and one of the others' neurons
BOTH = {**HALF, "rounds": 1, "keep_experts": 0.5}
BOTH_RUNS = {
    "gpt_oss": {**BOTH, "expert_scorer": "frequency"},
    "deepseek_v3": {**BOTH, "keep_optimizer_state": True},
    # two rounds of experts
    "mixtral": {
        **BOTH,
        "experts_per_round": 2,
        "score_during_recovery": True,
        "scorer": "output-change",
    },
}
STATISTICS = ("round-01/statistics.safetensors", "round-02/statistics.safetensors")


def write_tiny(
    model_type: str, folder: Path, tokenizer: PreTrainedTokenizerBase, experts: int = NUM_EXPERTS
) -> list[str]:
    """Save a tiny model and data; returns the flags that name them."""
    make_mixture(model_type, experts).save_pretrained(folder / "model")
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


@pytest.mark.parametrize("model_type", list(BOTH_RUNS))
def test_half_of_the_experts_go_and_half_of_the_others_neurons(
    model_type: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    input_ids: torch.Tensor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_tiny(model_type, tmp_path, tokenizer, experts=8)
    flags = [*names, *as_flags({**RUN, **BOTH_RUNS[model_type]})]
    assert main([*flags, "--dry-run"]) == 0
    predicted = capsys.readouterr().out
    assert main([*flags, "--output", "out"]) == 0
    assert "of a layer's routed tokens" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    *others, last = report["rounds"]
    assert (others[-1]["num_experts"], others[-1]["width"]) == (4, EXPERT_WIDTH)
    assert len(others) == (2 if "experts_per_round" in BOTH_RUNS[model_type] else 1)
    assert (last["num_experts"], last["width"]) == (4, EXPERT_WIDTH // 2)
    assert last["eval"]["nll"]["nll"] < last["eval_pruned"]["nll"]["nll"]
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    assert num_experts(final.config) == report["final"]["num_experts"] == 4
    assert final.num_parameters() == report["final"]["num_parameters"]
    # the same sizes as foretold
    cells = [short(last[name]) for name in ("num_parameters", "flops_per_token")]
    assert f"|{'|'.join(cells)}|" in "".join(predicted.split())
    assert "experts a layer" in (tmp_path / "out" / "report.md").read_text()
    assert final.generate(input_ids, max_new_tokens=3, do_sample=False).shape == (3, 24)


def test_killed_run_goes_on_and_ends_bit_identical(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_tiny("qwen3_moe", tmp_path, tokenizer, experts=8)
    flags = [*names, *as_flags({**RUN, **BOTH})]
    assert main([*flags, "--output", "undisturbed"]) == 0
    again = [*flags, "--output", "run"]
    # before a checkpoint is complete, the round's training would begin anew
    checkpoints = (f"round-0{each}/recovery/checkpoint-*/complete" for each in (1, 2))
    stages = ("round-01/plan.json", *checkpoints)
    for stage in stages:
        assert kill_when(f"run/{stage}", again, tmp_path), stage
    assert main(again) == 0
    runs = [tmp_path / "undisturbed", tmp_path / "run"]
    for name in ("final/model.safetensors", *STATISTICS):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert without_seconds(reports[0]) == without_seconds(reports[1])
    assert [record["kind"] for record in reports[0]["rounds"]] == ["experts", "neurons"]

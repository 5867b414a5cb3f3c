"""A sliced model saves, loads, trains and resumes, and is counted exactly."""

import contextlib
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptl_fast import compress
from ptl_fast.base.stored import JsonFile
from ptl_fast.baselines.slicegpt import sliced_config
from ptl_fast.model.flops import model_size
from ptl_fast.recovery import checkpoints
from support.files import write_data
from support.models import DEMO_MODEL, make_model
from support.runs import main, without_seconds
from support.slicing import logits, packed, sliced

LOAD_ELSEWHERE = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_saved_model_loads_generates_and_is_counted_exactly(
    family: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    dense = make_model(family)
    predicted = model_size(sliced_config(dense.config, 24), 21)
    small = sliced(dense, 24)
    small.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, input_ids), logits(small, input_ids))
    generated = [
        reloaded.generate(input_ids, max_new_tokens=12, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*generated), "the KV cache must agree with computing everything again"
    assert predicted == model_size(reloaded.config, 21)
    assert predicted["num_parameters"] == reloaded.num_parameters()
    reloaded.set_attn_implementation(
        "eager"
    )  # it computes the full square, so every token sees all 21
    with FlopCounterMode(display=False) as counter:
        logits(reloaded, input_ids[:1])
    assert predicted["flops_per_token"] * 21 == counter.get_total_flops()


def test_number_of_parameters_by_hand() -> None:
    """Hidden 32 to 24, head dimension 8 with 4 heads and 2 KV heads, FFN 48, 384 embeddings, 5
    layers; the last writes 32.
    """
    shortcuts = 9 * 24 * 24 + 24 * 32
    attention = 5 * (24 * 32 + 2 * 24 * 16 + 32 * 24)
    ffn = 5 * 2 * 24 * 48 + 4 * 48 * 24 + 48 * 32
    embedding, norm, head = 384 * 24, 32, 384 * 32
    assert (
        sliced(make_model("llama"), 24).num_parameters()
        == shortcuts + attention + ffn + embedding + norm + head
    )


def test_without_ptl_fast_transformers_refuses_the_folder(tmp_path: Path) -> None:
    sliced(make_model("llama"), 24).save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert (
        "model type `slicegpt_llama` but Transformers does not recognize this architecture"
        in result.stderr
    )


def test_gradient_checkpointing_gives_the_same_gradients(input_ids: torch.Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = sliced(make_model("gemma2"), 24).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


RUN = {
    "preset": "demo",
    "slice_hidden": 0.25,
    "recovery_tokens": 3000,
    "learning_rate": 1e-3,
    "sequence_length": 128,
    "global_batch": 8,
    "micro_batch": 8,
    "calibration_tokens": 2000,
    "eval_tasks": ["nll", "demo_arithmetic"],
    "eval_limit": 5,
    "checkpoint_minutes": 0,
    "device": "cpu",
}


class Killed(BaseException):
    """As sudden as a signal: nothing in the loop catches it."""


def run_until(written: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, and die as soon as this file is there."""
    write = JsonFile.write

    def write_and_die(self: JsonFile, content: Any) -> None:
        write(self, content)
        if self.path == folder / written:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JsonFile, "write", write_and_die)
        with contextlib.suppress(Killed):
            compress(**RUN, data=data, output=folder)
    assert (folder / written).is_file()
    assert not (folder / "final").exists()
    gc.collect()  # the folder's lock goes with its owner


def test_run_slices_recovers_and_resumes_bit_identically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    data = write_data(tmp_path / "data.jsonl")
    expected = compress(**RUN, data=data, output=tmp_path / "undisturbed")
    for written in ("round-01/plan.json", "round-01/pruned.json"):
        run_until(written, data, tmp_path / "run", monkeypatch)

    save, num_saves = checkpoints.Checkpoints.on_save, []

    def save_twice(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        num_saves.append(1)
        if len(num_saves) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "on_save", save_twice)
        with contextlib.suppress(Killed):
            compress(**RUN, data=data, output=tmp_path / "run")
    assert list((tmp_path / "run" / "round-01" / "recovery").glob("checkpoint-2/complete")), (
        "recovery goes on from here"
    )
    gc.collect()
    resumed = compress(**RUN, data=data, output=tmp_path / "run")
    assert without_seconds(resumed) == without_seconds(expected)
    for name in (
        "final/model.safetensors",
        "final/config.json",
        "round-01/plan.json",
        "round-01/statistics.safetensors",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (
            tmp_path / "undisturbed" / name
        ).read_bytes(), name
    check_result(tmp_path / "run", resumed)


def check_result(folder: Path, report: dict) -> None:
    """The round is what was asked for, recovery helped, and the sizes in the report are those of
    the saved model.
    """
    (record,), dense = report["rounds"], report["dense"]
    config = json.loads((folder / "final" / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["sliced_hidden_size"]) == (
        "slicegpt_llama",
        128,
        32,
    )
    assert (record["kind"], record["width"], record["num_layers"]) == (
        "hidden",
        dense["width"],
        dense["num_layers"],
    )
    assert (
        dense["eval"]["nll"]["nll"]
        < record["eval"]["nll"]["nll"]
        < record["eval_pruned"]["nll"]["nll"]
    )
    assert record["flops_per_token"] < dense["flops_per_token"]
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    assert record["num_parameters"] == model.num_parameters()
    assert AutoTokenizer.from_pretrained(folder / "final").eos_token is not None
    assert "import ptl_fast.slicegpt" in (folder / "report.md").read_text()
    assert "SliceGPT (arXiv 2401.15024)" in (folder / "final" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slice-hidden", "1.5"], "outside (0, 1)"),
        (["--slice-hidden", "0.01"], "rounds to 0, a multiple of 8"),
        (["--slice-hidden", "0.75", "--keep", "0.5"], "does not go with --keep below 1"),
        (["--slice-hidden", "0.75", "--drop-layers", "1"], "does not go with"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--preset", "demo", "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_sliced_models_lose_no_layers_and_are_not_sliced_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sliced(make_model("llama"), 24).save_pretrained(tmp_path)
    flags = [
        "--model",
        str(tmp_path),
        "--data",
        "ptl-demo",
        "--dry-run",
        "--sequence-length",
        "128",
    ]
    assert main([*flags, "--keep", "1", "--drop-layers", "1"]) == 2
    assert "the layers of" in capsys.readouterr().err
    assert main([*flags, "--slice-hidden", "0.5"]) == 2
    assert "not possible for model_type slicegpt_llama" in capsys.readouterr().err


def test_dry_run_shows_the_slice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "demo", "--dry-run", "--slice-hidden", "0.75"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.strip().splitlines()
    ]
    dense, tokens = AutoModelForCausalLM.from_pretrained(DEMO_MODEL), packed()
    tokens.input_ids.remainder_(dense.config.vocab_size)
    size = round(0.75 * dense.config.hidden_size)
    assert rows[3][:3] == [
        "1 hidden",
        str(dense.config.intermediate_size),
        str(dense.config.num_hidden_layers),
    ]
    assert rows[3][3] == f"{sliced(dense, size, tokens).num_parameters() / 1e6:.4g}M"

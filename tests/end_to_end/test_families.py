"""The whole loop, from the command line, on a tiny model of every family; and weights that do not
fit are refused.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from support.files import write_data
from support.models import FAMILIES, make_model
from support.runs import main

FLAGS = (
    "--keep 0.66 --rounds 2 --width-multiple 8 --drop-layers 1 --order alternate"
    " --recovery-tokens 6000 --sequence-length 64"
)
FLAGS += (
    " --global-batch 8 --micro-batch 4 --calibration-tokens 1000 --eval-tasks nll"
    " --eval-limit 20 --device cpu --learning-rate 1e-3"
)


def save_tiny(family: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    make_model(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_loop_on_every_family(
    family: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    input_ids: torch.Tensor,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(family, tmp_path / "model", tokenizer)
    write_data(tmp_path / "data.jsonl", 600)
    (tmp_path / "general.txt").write_text(
        "\n\n".join(f"Sentence {number} about nothing much." for number in range(200))
    )
    flags = [
        "--model",
        "model",
        "--data",
        "data.jsonl",
        "--protect",
        "general.txt",
        "--output",
        "out",
        *FLAGS.split(),
    ]
    assert main(flags) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [record["kind"] for record in report["rounds"]] == ["neurons", "layers", "neurons"]
    assert (
        report["rounds"][-1]["eval"]["nll"]["nll"]
        < report["rounds"][-1]["eval_pruned"]["nll"]["nll"]
    )
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    assert (final.config.intermediate_size, final.config.num_hidden_layers) == (32, 4)
    assert final.num_parameters() == report["final"]["num_parameters"]
    assert final.generate(input_ids, max_new_tokens=3, do_sample=False).shape == (3, 24)


@pytest.mark.parametrize("problem", ["missing", "truncated", "more-layers", "fewer-layers"])
def test_weights_that_do_not_fit_are_refused(
    problem: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """transformers would fill the gaps with random weights and go on."""
    monkeypatch.chdir(tmp_path)
    save_tiny("llama", tmp_path / "model", tokenizer)
    write_data(tmp_path / "data.jsonl", 600)
    weights, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    if problem == "missing":
        kept = {
            name: tensor
            for name, tensor in load_file(weights).items()
            if "layers.2.mlp" not in name
        }
        save_file(kept, weights, metadata={"format": "pt"})
    elif problem == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        settings = json.loads(config.read_text())
        settings["num_hidden_layers"] = 7 if problem == "more-layers" else 3
        config.write_text(json.dumps(settings))
    assert (
        main(["--model", "model", "--data", "data.jsonl", "--output", "out", *FLAGS.split()]) == 2
    )
    message = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert message.startswith("error: --model model")
    assert ("do not belong together" in message) == (problem != "truncated")
    assert not (tmp_path / "out").exists()

"""The whole loop, from the command line, on a tiny model of every family."""

import json
from pathlib import Path

import pytest
import torch
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

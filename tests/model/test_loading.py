"""Weights that do not fit their config are refused."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from support.files import write_data
from support.models import make_model
from support.runs import main


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
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
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
    flags = "--model model --data data.jsonl --output out --keep 0.5 --width-multiple 8"
    assert main([*flags.split(), "--recovery", "none", "--sequence-length", "64"]) == 2
    message = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert message.startswith("error: --model model")
    assert ("do not belong together" in message) == (problem != "truncated")
    assert not (tmp_path / "out").exists()

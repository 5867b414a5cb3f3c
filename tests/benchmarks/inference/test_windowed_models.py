"""The random Gemma 2 models: their layers, and that a window in them can be seen from outside."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.inference import windowed_models
from ptl_fast.model import engines
from ptl_fast.run import engine_tokens

KINDS = {
    "gemma2": "sfsfsf",
    "gemma2-without-2-3": "sfsf",
    "gemma2-without-0": "fsfsf",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("windowed")
    windowed_models.main([str(made)])
    return made


@pytest.mark.parametrize("name", windowed_models.DROPPED)
def test_layers_keep_their_own_kind(folder: Path, name: str) -> None:
    config = AutoModelForCausalLM.from_pretrained(folder / name).config
    assert "".join(kind[0] for kind in config.layer_types) == KINDS[name]
    assert bool(engines.misread_by(config, "llama.cpp")) == (name == "gemma2-without-0")


@pytest.mark.parametrize("name", windowed_models.DROPPED)
def test_a_window_changes_likeliest_tokens_beyond_it_and_none_within(
    folder: Path, name: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
    ids = torch.tensor(engine_tokens.make_prompts(folder / name))
    found = []
    with torch.inference_mode():
        for window in (windowed_models.WINDOW, ids.shape[1]):
            model.config.sliding_window = window
            found.append(model(ids).logits.argmax(-1))
    differs = found[0] != found[1]
    assert not differs[:, : windowed_models.WINDOW].any()
    assert differs[:, windowed_models.WINDOW :].float().mean() > 0.02

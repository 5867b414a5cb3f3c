"""A config says that a head is tied where it is, and only there."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from ptl_fast.config.model import ModelSettings
from ptl_fast.model import flops, loading, tying
from support.models import make_model


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    make_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("change", [0.0, 1e-3])
@pytest.mark.parametrize("row", [0, 383])
def test_a_head_of_its_own_is_counted_and_said(
    tied: Path, change: float, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that holds the embedding twice is a tied one; the last number decides."""
    monkeypatch.setattr(tying, "ROWS", 100)
    tensors = load_file(tied / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[row, -1] += change
    save_file({**tensors, "lm_head.weight": head}, tied / "model.safetensors", {"format": "pt"})
    assert AutoConfig.from_pretrained(tied).tie_word_embeddings
    config = loading.load_config(str(tied))
    model = loading.load_model(str(tied), ModelSettings(), "cpu")
    assert config.tie_word_embeddings == model.config.tie_word_embeddings == (not change)
    assert flops.count_weights(config).num_parameters == model.num_parameters()


def test_a_tied_model_stays_tied(tied: Path) -> None:
    assert loading.load_config(str(tied)).tie_word_embeddings
    model = loading.load_model(str(tied), ModelSettings(), "cpu")
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight

"""A padding token without an embedding does not matter, where no text has it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ptl_fast import compress
from ptl_fast.config.model import ModelSettings
from ptl_fast.model import loading, padding
from support.files import write_rows
from support.models import DEMO_MODEL, make_model
from support.runs import RUN, without_seconds

ONE_ROUND = {**RUN, "rounds": 1, "recovery_tokens": 3000}


def load_tokenizer(pad_token: str | None) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    return tokenizer


def test_a_padding_token_with_an_embedding_stays() -> None:
    tokenizer = load_tokenizer(None)
    before = tokenizer.pad_token_id
    padding.replace_padding_(tokenizer, len(tokenizer))
    assert tokenizer.pad_token_id == before


def test_another_token_takes_the_place_of_one_without_an_embedding() -> None:
    tokenizer = load_tokenizer("[PAD]")
    count = len(tokenizer) - 1
    assert tokenizer.pad_token_id == count
    padding.replace_padding_(tokenizer, count)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id < count
    tokenizer = load_tokenizer("[PAD]")
    tokenizer.eos_token = None
    padding.replace_padding_(tokenizer, count)
    assert tokenizer.pad_token_id == 0


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """A model whose tokenizer, config and generation config name a padding token that it lacks."""
    folder = tmp_path / "model"
    tokenizer = load_tokenizer("[PAD]")
    model = make_model("llama", vocab_size=len(tokenizer) - 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**held, "pad_token_id": len(tokenizer) - 1}))
    return folder


def test_it_is_named_nowhere_in_a_loaded_model(padded: Path) -> None:
    """transformers builds no model with such a config."""
    assert loading.load_config(str(padded)).pad_token_id is None
    model = loading.load_model(str(padded), ModelSettings(), "cpu")
    assert model.config.pad_token_id is None
    assert model.generation_config is not None
    assert model.generation_config.pad_token_id is None


def test_a_run_ends_as_with_a_padding_token_that_has_an_embedding(
    padded: Path, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """With rows of other lengths in one batch; and the result keeps the tokenizer's files."""
    other = tmp_path / "other"
    make_model("llama", vocab_size=len(load_tokenizer(None)), pad_token_id=None).save_pretrained(
        other
    )
    load_tokenizer(None).save_pretrained(other)
    inputs: dict[str, Any] = {**tiny_run, **ONE_ROUND}
    found = compress(**{**inputs, "model": str(padded), "output": tmp_path / "run"})
    expected = compress(**{**inputs, "model": str(other), "output": tmp_path / "expected"})
    assert without_seconds(found) == without_seconds(expected)
    final = tmp_path / "run" / "final"
    assert AutoTokenizer.from_pretrained(final).pad_token == "[PAD]"
    loading.load_model(str(final), ModelSettings(), "cpu")


def test_text_that_has_it_is_refused(
    padded: Path, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    rows = [{"question": f"{row} + 0 =", "answer": f"{row} [PAD]"} for row in range(500)]
    data = write_rows(tmp_path / "data.jsonl", *rows)
    settings = {**tiny_run, **ONE_ROUND, "model": str(padded), "data": data}
    with pytest.raises(ValueError, match="its tokenizer gives ids beyond the model's"):
        compress(**settings, output=tmp_path / "run")


def test_a_teacher_needs_no_embedding_for_it(padded: Path) -> None:
    loading.check_teacher(str(padded), load_tokenizer("[PAD]"))
    tokenizer = load_tokenizer("[PAD]")
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="gives ids beyond the model's"):
        loading.check_teacher(str(padded), tokenizer)

"""The comparison of an engine's greedy tokens with transformers'."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ptl_fast.run import engine_tokens
from support.models import DEMO_MODEL, make_model


@pytest.mark.parametrize(
    ("found", "equal", "compared"),
    [
        pytest.param([[1, 2, 3], [4, 5, 6]], 6, 6, id="all"),
        pytest.param([[1, 9, 3], [4, 5, 6]], 4, 6, id="a-difference-ends-its-prompt"),
        pytest.param([[1, 2, 3], [4, 9, 9]], 4, 4, id="undecided-is-not-compared"),
        pytest.param([[1, 2], [4, 5, 6]], 5, 6, id="too-few"),
        pytest.param([[1, 2, 3, 7], [4, 5, 6, 7]], 6, 6, id="what-is-beyond-does-not-count"),
    ],
)
def test_tokens_are_counted(found: list[list[int]], equal: int, compared: int) -> None:
    decided = [[True, True, True], [True, False, True]]
    result = engine_tokens.compare([[1, 2, 3], [4, 5, 6]], decided, found)
    assert (result.num_equal, result.num_compared) == (equal, compared)
    assert result.is_equal is (equal == compared)


def test_nothing_compared_is_not_equal() -> None:
    assert not engine_tokens.Comparison(0, 0).is_equal


def test_prompts_are_longer_than_the_window(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"sliding_window": 40}))
    prompts = engine_tokens.make_prompts(tmp_path)
    assert [len(prompt) for prompt in prompts] == [40 + engine_tokens.BEYOND] * len(prompts)
    assert len(set(map(tuple, prompts))) == len(prompts)
    assert prompts == engine_tokens.make_prompts(tmp_path)


def test_greedy_tokens_are_those_of_generate() -> None:
    prompts = engine_tokens.make_prompts(DEMO_MODEL)[:2]
    tokens, decided = engine_tokens.by_transformers(DEMO_MODEL, prompts)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    for prompt, found, sure in zip(prompts, tokens, decided, strict=True):
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, len(prompt) :]
        assert made.tolist()[: len(found)] == found
        assert len(sure) == len(found)


@pytest.mark.parametrize(("quantized", "passes"), [(False, False), (True, True)])
def test_other_tokens_fail_only_where_weights_are_exact(
    quantized: bool,
    passes: bool,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # an engine's module that is always there
    engine = {"json": lambda file, context: lambda prompt, number: [-1] * number}
    monkeypatch.setattr(engine_tokens, "ENGINES", engine)
    monkeypatch.setattr(engine_tokens, "UNDECIDED", 0.0)
    assert engine_tokens.check(tmp_path, tmp_path / "x.gguf", quantized) is passes
    assert "Greedy tokens equal to transformers': 0 of " in capsys.readouterr().out


def test_without_an_engine_it_is_told_that_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_tokens, "ENGINES", {"no_such_engine": None})
    assert engine_tokens.check(tmp_path, tmp_path / "x.gguf", False)
    assert "Not checked" in capsys.readouterr().out

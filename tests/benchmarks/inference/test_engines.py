"""The comparison of other engines, with an engine that answers as transformers does."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.inference import engines
from ptl_fast.run import engine_tokens


def test_an_engine_is_compared_and_timed(
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(tiny_run["model"])
    expected: dict[tuple[int, ...], list[int]] = {}
    by_transformers = engine_tokens.by_transformers

    def remembered(model: Path, prompts: list[list[int]]) -> object:
        tokens, sure = by_transformers(model, prompts)
        expected.update({tuple(prompt): each for prompt, each in zip(prompts, tokens, strict=True)})
        return tokens, sure

    # prompts are asked before transformers answers: the engine is right at all but one
    def load(file: Path, context: int) -> engine_tokens.Greedy:
        def greedy(prompt: list[int], number: int) -> list[int]:
            sum(range(20_000))  # an engine takes time
            if number != engine_tokens.NUM_TOKENS:
                return [0] * number
            if tuple(prompt) not in expected:
                remembered(folder, [prompt])
            return expected[tuple(prompt)]

        return greedy

    monkeypatch.setitem(engines.ENGINES, "xllamacpp", load)
    monkeypatch.setitem(engines.PACKAGES, "xllamacpp", "torch")
    file = tmp_path / "out.json"
    pair = f"{folder}={folder}"
    words = [
        "xllamacpp",
        pair,
        pair,
        "--cut",
        "9",
        "--lengths",
        "8",
        "--turns",
        "2",
        "--json",
        str(file),
    ]
    engines.main([*words, "--json", str(file)])
    results = json.loads(file.read_text())
    assert results["version"] == torch.__version__
    assert all(each["equal"] == each["compared"] > 0 for each in results["tokens"])
    whole, cut = results["tokens"][:2]
    assert whole["prompt_length"] > cut["prompt_length"] == 9
    assert len(results["tokens"]) == 4
    assert [each["what"] for each in results["times"]] == ["prompt", "tokens"]
    assert [each["predicted"] for each in results["times"]] == [1.0, 1.0]
    assert "times as fast" in capsys.readouterr().out


def test_a_smaller_model_is_predicted_to_be_faster(tmp_path: Path) -> None:
    for name, width in (("dense", 256), ("pruned", 128)):
        (tmp_path / name).mkdir()
        fields = {"model_type": "llama", "hidden_size": 64, "intermediate_size": width}
        fields |= {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
        (tmp_path / name / "config.json").write_text(json.dumps(fields))
    folders = [tmp_path / "dense", tmp_path / "pruned"]
    last, whole = (engines.predicted(folders, torch.float32, 64, every) for every in (False, True))
    # the logits of all positions cost both models the same
    assert last["prompt"] > whole["prompt"] > 1
    assert last["tokens"] == whole["tokens"] > 1


def test_an_answer_that_ends_early_is_refused() -> None:
    short = [lambda prompt, number: [0], lambda prompt, number: [0]]
    with pytest.raises(ValueError, match="ended too early"):
        engines.timed(short, [1, 2], 1)


def test_ctranslate2_is_asked_for_a_prompt_at_once_or_token_by_token(
    tiny_run: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Generator:
        def __init__(self, *_: object, **__: object) -> None: ...

        def generate_batch(self, start: list[list[str]], **options: object) -> list:
            asked.append(options)
            again = [7, 8] if options["include_prompt_in_result"] else []
            return [SimpleNamespace(sequences_ids=[[*again, 1, 2, 3]])]

    monkeypatch.setitem(sys.modules, "ctranslate2", SimpleNamespace(Generator=Generator))
    for name in ("ctranslate2", "ctranslate2_stepwise"):
        assert engines.ENGINES[name](Path(tiny_run["model"]), 8)([7, 8], 3) == [1, 2, 3]
    assert [each["max_length"] for each in asked] == [3, 5]

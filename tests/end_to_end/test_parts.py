"""Whole runs on models of several parts: the text decoder becomes smaller, and nothing else."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from support.files import write_data
from support.processes import kill_when
from support.runs import RUN, as_flags, main, without_seconds
from support.wholes import make_whole, with_image

SETTINGS = {
    **RUN,
    "rounds": 1,
    "drop_layers": 1,
    "recovery_tokens": 3000,
    "recovery_growth": 1.0,
    "eval_tasks": "nll",
    "eval_limit": 4,
}
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def write_whole(model_type: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Save a tiny whole in bfloat16, processors and data; returns the flags that name them."""
    # a pattern of attention, which other engines follow by a layer's number
    text = {"sliding_window_pattern": 2} if model_type == "gemma3" else {}
    make_whole(model_type, **text).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name in PROCESSORS:
        (folder / "model" / name).write_text(json.dumps({"of": name}))
    write_data(folder / "data.jsonl", 200)
    return ["--model", "model", "--data", "data.jsonl"]


@pytest.mark.parametrize("model_type", ["gemma3", "qwen3_5"])
def test_the_decoder_becomes_smaller_and_all_else_stays(
    model_type: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*write_whole(model_type, tmp_path, tokenizer), *as_flags(SETTINGS)]
    assert main([*flags, "--dry-run"]) == 0
    assert f"Its text decoder ({model_type}_text) is compressed inside" in capsys.readouterr().out
    out = [*flags, "--output", "out"]
    # one is killed while it trains, and continued
    if model_type == "gemma3":
        assert kill_when("out/round-02/recovery/checkpoint-*", out, tmp_path)
    assert main(out) == 0
    assert "from transformers import AutoModelForImageTextToText" in capsys.readouterr().out
    final = tmp_path / "out" / "final"
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "model", final)
    )
    others = [name for name in before if "language_model" not in name and "lm_head" not in name]
    assert others
    for name in others:
        assert before[name].dtype == after[name].dtype == torch.bfloat16, name
        assert torch.equal(before[name], after[name]), name
    config = json.loads((final / "config.json").read_text())
    text = config["text_config"]
    assert (text["intermediate_size"], text["num_hidden_layers"]) == (24, 4)
    original = json.loads((tmp_path / "model" / "config.json").read_text())
    own = ("text_config", "vision_config")
    assert {**config, **dict.fromkeys(own)} == {**original, **dict.fromkeys(own)}
    assert {**original["vision_config"], "dtype": "bfloat16"} == config["vision_config"]
    changed = {name for name in text if text[name] != original["text_config"].get(name)} - {"dtype"}
    assert changed == {"intermediate_size", "num_hidden_layers", "layer_types"}
    for name in PROCESSORS:
        assert (final / name).read_text() == (tmp_path / "model" / name).read_text()
    model = getattr(transformers, config["architectures"][0]).from_pretrained(final)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert model.num_parameters() == report["final"]["num_parameters"]
    image = with_image(model_type)
    image["pixel_values"] = image["pixel_values"].to(model.dtype)
    assert model(**image).logits.isfinite().all()
    card = (final / "README.md").read_text()
    assert "loads with `AutoModelForImageTextToText.from_pretrained`" in card
    assert "Its text decoder alone was pruned and trained." in card
    if model_type == "gemma3":
        assert main([*flags, "--output", "undisturbed"]) == 0
        assert (final / "model.safetensors").read_bytes() == (
            tmp_path / "undisturbed" / "final" / "model.safetensors"
        ).read_bytes()
        again = json.loads((tmp_path / "undisturbed" / "report.json").read_text())
        assert without_seconds(report) == without_seconds(again)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        (["--stream", "--eval-tasks", "none"], "does not know a model of several parts"),
        (["--scorer", "flap", "--compensate", "false"], "--scorer flap makes a model type of its"),
        (["--slice-hidden", "0.25", "--keep", "1"], "--slice-hidden makes a model type of its own"),
    ],
)
def test_what_a_whole_cannot_be_is_refused_before_work(
    others: list[str],
    why: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_whole("llava", tmp_path, tokenizer)
    for last in (["--dry-run"], ["--output", "out"]):
        given = [*names, "--sequence-length", "64", *others, *last]
        given += [] if "--keep" in others else ["--keep", "0.5"]
        assert main(given) == 2
        assert why in capsys.readouterr().err

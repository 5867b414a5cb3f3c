"""The file that is to blame is named, and nothing where all can be read."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.model.damaged_files import blame
from ptl_fast.model.loading import load_config, load_model, load_tokenizer
from support.models import make_model
from support.settings import settings

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model("llama").save_pretrained(tmp_path, max_shard_size="150KB")
    return tmp_path


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def lie(folder: Path, place: object) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = place
    index.write_text(json.dumps(content))


def indexed(folder: Path, **changed: object) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changed}))


def replaced(folder: Path, make: Callable[[Path], object]) -> None:
    """Something that is no file in the place of weights."""
    file = shards(folder)[0]
    file.unlink()
    make(file)


def dangle(file: Path) -> None:
    file.symlink_to("nothing")


def load(folder: Path) -> None:
    load_config(str(folder))
    load_model(str(folder), settings().model, "cpu")


@pytest.mark.parametrize(
    ("damage", "file", "told"),
    [
        (lambda folder: lie(folder, None), "index.json", "lm_head.weight is said to be in None"),
        (lambda folder: lie(folder, "/etc/passwd"), "index.json", "no file of weights in the"),
        (lambda folder: lie(folder, "\0"), "index.json", "there is no such file"),
        (lambda folder: shards(folder)[1].unlink(), "index.json", "there is no such file"),
        (lambda folder: shards(folder)[1].write_bytes(b""), "safetensors", "damaged or cut off"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json", "no JSON ("),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json", "no JSON object"),
        (lambda folder: (folder / "config.json").write_text("null"), "config.json", "no JSON obj"),
        (lambda folder: (folder / "config.json").write_text("[" * 10**5), "config.json", "no JSON"),
        (lambda folder: indexed(folder, weight_map={}), "index.json", "it has no weight_map"),
        (lambda folder: indexed(folder, metadata=None), "index.json", "its metadata is no JSON"),
        (lambda folder: replaced(folder, Path.mkdir), "safetensors", "no file, or a link to none"),
        (lambda folder: replaced(folder, os.mkfifo), "safetensors", "no file, or a link to none"),
        (lambda folder: replaced(folder, dangle), "safetensors", "no file, or a link to none"),
    ],
)
def test_the_damaged_file_is_named(
    damage: Callable[[Path], object], file: str, told: str, folder: Path
) -> None:
    assert blame(folder) == ""
    damage(folder)
    named = blame(folder)
    assert file in named.split(": ")[0]
    assert told in named
    with pytest.raises(ValueError, match=r"^--model [^\n]+$"):
        load(folder)


def test_a_hub_model_has_no_folder_to_blame() -> None:
    assert blame(None) == ""


@pytest.mark.parametrize("field", ["text_config", "quantization_config", "auto_map"])
def test_a_part_of_the_config_that_is_no_object_is_named(field: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: "nope"}))
    with pytest.raises(ValueError, match=f"{field} is no JSON object, but 'nope'"):
        load(folder)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    width = config["intermediate_size"]
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": width + 8}))
    with pytest.raises(ValueError, match=r"they differ in .*mlp\.\w+_proj\.weight.*\[") as raised:
        load(folder)
    assert "report above" not in str(raised.value)


def test_a_setting_that_no_text_survives_is_told(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": [1]}))
    with pytest.raises(ValueError, match=r"has no tokenizer that can be loaded \(TypeError"):
        load_tokenizer(str(tmp_path))

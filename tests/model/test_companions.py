"""The original's tokenizer files, chat template and licence stand beside the result, unchanged."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ptl_fast.config.model import ModelSettings
from ptl_fast.model import companions
from support.models import DEMO_MODEL

COPIED = {
    "tokenizer.model": b"\x0a\x0e sentencepiece",
    "tokenizer_config.json": b'{\n "tokenizer_class": "PreTrainedTokenizerFast",  "note":"ours"}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "LICENSE": b"do what you like",
    "LICENCE-MODEL.txt": b"but say so",
    "USE_POLICY.md": b"kindly",
    "NOTICE": b"",
    "preprocessor_config.json": b"{}",
    "video_preprocessor_config.json": b"{}",
}
LEFT = ("README.md", "model.safetensors", "pytorch_model.bin", "training.py")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "original")
    for name, content in {**COPIED, **dict.fromkeys(LEFT, b"x")}.items():
        file = tmp_path / "original" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "original"


def test_files_are_those_of_the_original(original: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    result.mkdir()
    companions.write(str(original), result)
    for name, content in COPIED.items():
        assert (result / name).read_bytes() == content
    assert (result / "tokenizer.json").read_bytes() == (original / "tokenizer.json").read_bytes()
    assert not any((result / name).exists() for name in LEFT)
    assert companions.difference(str(original), result) is None


def test_processors_come_alone(original: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    result.mkdir()
    companions.write_processors(str(original), result)
    names = sorted(file.name for file in result.iterdir())
    assert names == ["preprocessor_config.json", "video_preprocessor_config.json"]
    companions.write_processors("", result)


def test_files_of_the_hub_are_those_of_its_cache(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not there is not an error, and neither is a hub that does not answer."""
    asked: list[str] = []

    def cached_file(name: str, file: str, **kwargs: bool) -> str | None:
        assert name == "owner/name"
        assert not any(kwargs.values())
        asked.append(file)
        return str(original / file) if (original / file).exists() else None

    monkeypatch.setattr(companions, "cached_file", cached_file)
    companions.write("owner/name", tmp_path)
    assert {"tokenizer.model", "LICENSE", "USE_POLICY.md"} <= set(asked)
    for name, content in COPIED.items():
        assert (tmp_path / name).read_bytes() == content


def test_another_tokenizer_is_named(original: Path, tmp_path: Path) -> None:
    companions.write(str(original), tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ other }}")
    assert companions.difference(str(original), tmp_path) == (
        "its tokenizer has another chat template"
    )
    tokenizer = AutoTokenizer.from_pretrained(original)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path)
    assert companions.difference(str(original), tmp_path) == "its tokenizer has another vocabulary"
    (tmp_path / "tokenizer.json").write_text("{")
    found = companions.difference(str(original), tmp_path)
    assert found is not None
    assert found.startswith("its tokenizer cannot be loaded")


def test_a_converted_tokenizer_is_saved_too(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(original)
    (original / "tokenizer.json").unlink()
    monkeypatch.setattr(companions.loading, "load_tokenizer", lambda name, **_: tokenizer)
    companions.write(str(original), tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert (tmp_path / "tokenizer.model").read_bytes() == COPIED["tokenizer.model"]
    assert (tmp_path / "tokenizer_config.json").read_bytes() == COPIED["tokenizer_config.json"]


def test_a_changed_file_has_another_fingerprint(original: Path) -> None:
    (original / "config.json").write_text('{"rope_theta": 1e4, "transformers_version": "5.0"}')
    (original / "generation_config.json").write_text("{}")
    first = companions.fingerprint(str(original), ModelSettings())
    for name in (*LEFT, "LICENSE"):
        (original / name).write_bytes(b"other")
    (original / "config.json").write_text('{"transformers_version": "6.0", "rope_theta": 1e4}')
    assert companions.fingerprint(str(original), ModelSettings()) == first
    for name in (
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "tokenizer.model", "additional_chat_templates/tools.jinja"),
    ):
        before = (original / name).read_bytes()
        (original / name).write_bytes(b'{"rope_theta": 1e5, "transformers_version": "5.0"}')
        second = companions.fingerprint(str(original), ModelSettings())
        assert [key for key in first if first[key] != second[key]] == [name]
        (original / name).write_bytes(before)


def test_how_a_tokenizer_was_last_called_is_no_change(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    first = companions.fingerprint(str(tmp_path), ModelSettings())
    before = (tmp_path / "tokenizer.json").read_bytes()
    tokenizer(["a long text", "text"], truncation=True, padding=True, max_length=3)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() != before
    assert companions.fingerprint(str(tmp_path), ModelSettings()) == first

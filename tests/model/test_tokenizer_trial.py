"""Tokenizers and chat templates that take no end of time or memory are refused, others are not."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.model import tokenizer_trial
from ptl_fast.model.loading import load_tokenizer
from ptl_fast.model.tokenizer_trial import try_template, try_tokenizer

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tokenizer_trial,
        "CHILD",
        "from ptl_fast.model import tokenizer_trial as t; t.CPU_SECONDS = 3; t.serve()",
    )


def doubling(definition: str, times: int) -> str:
    """The tokenizer with letters that are doubled so many times before anything else."""
    rules = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * times
    changed: dict[str, Any] = json.loads(definition)
    changed["normalizer"] = {"type": "Sequence", "normalizers": rules}
    return json.dumps(changed)


def test_ordinary_ones_pass(tokenizer: PreTrainedTokenizerBase) -> None:
    assert try_tokenizer(tokenizer.backend_tokenizer.to_str()) == ""
    assert try_template(CHAT) == ""
    # another says why
    assert try_tokenizer("{") == ""
    assert try_template("{{ raise_exception('no') }}") == try_template("{% for %}") == ""


@pytest.mark.parametrize("times", [16, 45])
def test_a_text_that_grows_is_refused(tokenizer: PreTrainedTokenizerBase, times: int) -> None:
    wrong = try_tokenizer(doubling(tokenizer.backend_tokenizer.to_str(), times))
    assert "tokens of" in wrong if times == 16 else "for a page of text, or ended" in wrong


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**10 }}",
        "{{ 'x' * 10**7 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 10**6 }}{% endfor %}",
        "{{ 9**(9**9) }}",
        "{{ '%0999999999999d' % 1 }}",
    ],
)
def test_a_template_without_end_is_refused(template: str) -> None:
    start = time.monotonic()
    wrong = try_template(CHAT + template)
    assert ", or ended the process (" in wrong or "characters for a chat" in wrong
    assert "\n" not in wrong
    assert time.monotonic() - start < 60


def test_a_model_with_one_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 'x' * 10**10 }}")
    with pytest.raises(ValueError, match="its chat template cannot be used: it took more than"):
        load_tokenizer(str(tmp_path))
    file = tmp_path / "tokenizer.json"
    file.write_text(doubling(file.read_text(), 45))
    with pytest.raises(ValueError, match="its tokenizer cannot be used: it took more than"):
        load_tokenizer(str(tmp_path))

"""Reinforcement learning on small random data."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.recovery.grpo import rewards
from support.models import make_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a round's recovery."""
    return tmp_path / "round-01" / "recovery"


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Random weights with the tokenizer's vocabulary, so that responses differ."""
    return make_model("llama", vocab_size=len(tokenizer))


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward the share of digits among a response's characters, which random weights can learn."""

    def share(gold: str, text: str) -> float:
        return sum(letter.isdigit() for letter in text) / max(1, len(text))

    monkeypatch.setitem(rewards.REWARDS, "accuracy", share)

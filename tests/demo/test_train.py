"""The bundled model's training: its tokenizer, batches and learning rate, and two small steps."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ptl_fast.demo import train
from ptl_fast.demo.problems import generate


def test_every_text_comes_back_and_digits_stand_alone() -> None:
    texts = [train.as_text(problem) for problem in generate(300, 1, "training")]
    tokenizer = train.build_tokenizer(texts)
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0]
    assert tokenizer.decode(tokenizer("Größe 12\n")["input_ids"]) == "Größe 12\n"
    assert len(tokenizer("1234")["input_ids"]) == 4


def test_padding_has_no_label_and_an_incomplete_batch_is_left_out() -> None:
    found = list(train.batches([[5, 6, 7], [8], [9]], 2, pad=1))
    assert len(found) == 1
    rows, labels = found[0]
    assert rows.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert labels.tolist() == [[5, 6, 7], [8, -100, -100]]


def test_learning_rate_warms_up_falls_and_stays() -> None:
    rates = [train.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 200)
    assert max(rates) == pytest.approx(rates[200]) == pytest.approx(1.0)
    assert rates[200:800] == sorted(rates[200:800], reverse=True)
    assert rates[800:] == pytest.approx([0.05] * 200)


def test_training_leaves_a_model_a_tokenizer_and_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    monkeypatch.setattr(train, "NUM_CHECKED", 4)
    train.train(tmp_path, num_problems=16, batch_size=8, peak=1e-3)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in tmp_path.iterdir()
    }
    last = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[-1])
    assert torch.isfinite(torch.tensor(last["loss"]))

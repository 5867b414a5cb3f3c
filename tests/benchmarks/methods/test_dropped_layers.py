"""Models without layers are judged as they are, beside the dense one, on rows that calibration does
not read; an interrupted measurement goes on.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.methods import dropped_layers
from ptl_fast.data import answers
from ptl_fast.data.documents import Document

# Calibration reads 35 rows of the bundled problems.
FLAGS = [
    *("--tokens", "2000", "--dropped", "1", "2", "--scorers", "last", "--new-tokens", "3"),
    *("--held-out", "3000", "3008", "--problems", "3008", "3012"),
]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def chatting(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> None:
    """The bundled model has no chat template."""
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    monkeypatch.setattr(dropped_layers.loading, "load_tokenizer", lambda name: tokenizer)


def test_every_row_is_measured_once_and_compensation_helps(
    chatting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    judge, calls = dropped_layers.Judges.judge, list[int]()

    def interrupted(self: Any, model: PreTrainedModel) -> dict[str, Any]:
        calls.append(model.config.num_hidden_layers)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(self, model)

    monkeypatch.setattr(dropped_layers.Judges, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dropped_layers.main([*FLAGS, "--json", str(file)])
    dropped_layers.main([*FLAGS, "--json", str(file)])
    assert calls == [4, 3, 3, 3, 2, 2]
    part = json.loads(file.read_text())["models"]["ptl-demo"]
    assert {"commit", "torch", "device"} <= part["environment"].keys()
    dense, *rows = part["rows"]
    assert (dense["dropped"], dense["compensated"]) == (0, False)
    which = [(row["dropped"], row["layers"], row["compensated"]) for row in rows]
    assert which == [(1, [3], False), (1, [3], True), (2, [2, 3], False), (2, [2, 3], True)]
    assert all(row["problems"] == 4 and 0 <= row["right"] <= 4 for row in part["rows"])
    assert [len(row["folded"]) for row in rows] == [0, 1, 0, 1]
    for plain, compensated in (rows[:2], rows[2:]):
        assert dense["nll"] < compensated["nll"] < plain["nll"]


def test_rows_that_calibration_reads_judge_nothing(tmp_path: Path) -> None:
    for flags in (["--held-out", "10", "60"], ["--problems", "0", "5"], ["--held-out", "9", "9"]):
        with pytest.raises(SystemExit):
            dropped_layers.main([*FLAGS, *flags, "--json", str(tmp_path / "results.json")])


def test_other_measurements_are_not_mixed_in(chatting: None, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"models": {"ptl-demo": {"setup": {}, "rows": []}}}))
    with pytest.raises(SystemExit):
        dropped_layers.main([*FLAGS, "--json", str(file)])


def test_answers_are_those_of_each_prompt_alone(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding on the left changes nothing, and neither does what the model's own generation config
    asks for.
    """
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    monkeypatch.setattr(tokenizer, "padding_side", "right")
    monkeypatch.setattr(answers, "BOXED_REQUEST", "=")
    llama.generation_config.repetition_penalty = 5.0
    problems = [Document("1+1", ""), Document("(2+3)*4-17+1234", ""), Document("7", "")]
    found = dropped_layers.answer(llama, tokenizer, problems, 6, 2)
    for problem, reply in zip(problems, found, strict=True):
        ids = tokenizer(f"{problem.question}\n=", add_special_tokens=False)["input_ids"]
        new: list[int] = []
        while len(new) < 6 and tokenizer.eos_token_id not in new:
            with torch.inference_mode():
                logits = llama(torch.tensor([[*ids, *new]])).logits
            new.append(int(logits[0, -1].argmax()))
        assert reply == tokenizer.decode(new, skip_special_tokens=True)


def test_the_right_answer_is_behind_the_mark() -> None:
    assert dropped_layers.gold(Document("", "2 * 600 = <<2*600=1200>>1,200\n#### 1,200")) == "1200"

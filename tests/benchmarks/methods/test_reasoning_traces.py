"""Own answers are made once, and go on behind the last batch."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.methods import reasoning_traces
from benchmarks.methods.reasoning_problems import load_problems, read_traces


def test_interrupted_traces_go_on_and_are_the_same(
    reasoning_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = reasoning_world / "model"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problems = load_problems(reasoning_world / "data", "training", 5)["mbpp"]

    def make(file: Path) -> None:
        reasoning_traces.make_traces(model, tokenizer, problems, file, 2, 20)

    make(tmp_path / "whole.jsonl")
    original, calls = reasoning_traces.answer_batch, []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reasoning_traces, "answer_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts.jsonl")
    make(tmp_path / "parts.jsonl")
    assert len(calls) == 4
    whole = (tmp_path / "whole.jsonl").read_text()
    assert (tmp_path / "parts.jsonl").read_text() == whole
    rows = [json.loads(line) for line in whole.splitlines()]
    assert sorted(row["problem"] for row in rows) == [0, 1, 2, 3, 4]
    rows[1]["finished"] = True
    (tmp_path / "whole.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_traces(tmp_path / "whole.jsonl", problems.questions)
    assert found == [
        {"question": problems.questions[row["problem"]], "answer": row["answer"]}
        for row in rows
        if row["finished"]
    ]

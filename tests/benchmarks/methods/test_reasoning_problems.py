"""The problems are fixed, and nothing that a model is measured on reaches its calibration."""

import json
from pathlib import Path

import pytest

from benchmarks.methods import reasoning_problems as problems
from support.files import write_rows


def test_every_purpose_has_rows_of_its_own(reasoning_world: Path) -> None:
    data = reasoning_world / "data"
    test, development, training = (
        problems.load_problems(data, part, 5) for part in ("test", "development", "training")
    )
    assert [len(each["gsm8k"].rows) for each in (test, development, training)] == [5, 4, 5]
    assert [len(each["mbpp"].rows) for each in (test, development, training)] == [5, 5, 5]
    lines = (data / "gsm8k" / "train.jsonl").read_text().splitlines()
    assert development["gsm8k"].rows[0]["question"] == json.loads(lines[7000])["question"]
    assert test["mbpp"].rows[0]["text"] == "Add 70."
    with pytest.raises(ValueError, match=r"no file .*gsm8k/test\.jsonl; --data names the folder"):
        problems.load_problems(data / "gsm8k", "test", 5)


def test_written_answers_are_those_of_the_training_rows(reasoning_world: Path) -> None:
    mathematics = problems.written_exchanges(reasoning_world / "data", "gsm8k")
    assert len(mathematics) == 7000
    assert "\\boxed{}" in mathematics[0]["question"]
    assert "####" in mathematics[0]["answer"]
    code = problems.written_exchanges(reasoning_world / "data", "mbpp")
    assert code[3]["answer"] == "```python\ndef f(x):\n    return x + 3\n```"


def test_traces_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    file = tmp_path / "traces.jsonl"
    write_rows(file, {"messages": said}, {"messages": said, "finished": False})
    assert problems.read_traces(file, ["1 + 1?"]) == [{"question": "?", "answer": "!"}]
    write_rows(file, {"problem": 0, "answer": "2"})
    assert problems.read_traces(file, ["1 + 1?"]) == [{"question": "1 + 1?", "answer": "2"}]
    write_rows(file, {"messages": said}, {"problem": 1, "answer": "of no question"})
    with pytest.raises(ValueError, match="row 2 is neither"):
        problems.read_traces(file, ["1 + 1?"])
    write_rows(file, {"messages": said}, {"messages": said[:1]})
    with pytest.raises(ValueError, match=r"row 2 is neither \{messages"):
        problems.read_traces(file, ["1 + 1?"])
    write_rows(file, {"messages": said, "finished": False})
    with pytest.raises(ValueError, match="no finished answer"):
        problems.read_traces(file, ["1 + 1?"])


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    """GSM8K's training answers have some, not escaped."""
    text = "one\u2028two"
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps({"messages": said}, ensure_ascii=False) + "\n")
    assert problems.read_traces(file, ["1 + 1?"]) == [{"question": "?", "answer": text}]


def test_calibration_on_a_problem_that_is_measured_is_refused(
    reasoning_world: Path, tmp_path: Path
) -> None:
    test = problems.load_problems(reasoning_world / "data", "test", 5)
    file = tmp_path / "calibration.jsonl"
    exchange = {"question": test["gsm8k"].questions[1], "answer": "!"}
    with pytest.raises(ValueError, match="1 of the problems are those that models are measured on"):
        problems.write_exchanges(file, [exchange], test.values())
    assert not file.exists()
    problems.write_exchanges(file, [exchange], [])
    assert json.loads(file.read_text()) == exchange

"""The columns of a row are found or named: question and answer, messages, or text."""

import json
from pathlib import Path

import pytest

from ptl_fast.data import readers
from ptl_fast.data.documents import Document, Form
from support.files import write_rows


@pytest.mark.parametrize(
    "columns", [("question", "answer"), ("query", "response"), ("problem", "solution")]
)
def test_question_columns_are_found(tmp_path: Path, columns: tuple[str, str]) -> None:
    source = write_rows(tmp_path / "a.jsonl", {columns[0]: "1+1?", columns[1]: "2", "other": 3})
    assert readers.load_documents(source) == [Document("1+1?", "2")]


NUMINA = {
    "source": "olympiads",
    "problem": "1+1?",
    "solution": "It is 2.",
    "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2."}],
}


METAMATH = {
    "type": "GSM_Rephrased",
    "query": "1+1?",
    "original_question": "1+1=x",
    "response": "It is 2.",
}


OPC = {
    "seq_id": 7,
    "instruction": "1+1?",
    "output": "It is 2.",
    "code": "1+1",
    "entry_point": "f",
    "testcase": ["assert f()"],
}


STARCODER = {"max_stars_repo_path": "a.py", "max_stars_count": 3, "id": "7", "content": "print(2)"}


MATH = {"problem": "1+1?", "solution": "It is 2.", "answer": "2", "level": 1}


EXAMPLE = Document("1+1?", "It is 2.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(NUMINA, EXAMPLE, id="NuminaMath-CoT"),
        pytest.param(METAMATH, EXAMPLE, id="MetaMathQA"),
        pytest.param(OPC, EXAMPLE, id="opc-sft-stage2"),
        pytest.param(STARCODER, Document("", "print(2)"), id="StarCoder"),
        pytest.param(MATH, EXAMPLE, id="a-problem-belongs-to-its-solution"),
        pytest.param({"problem": "1+1?", "answer": "2"}, Document("1+1?", "2"), id="mixed-pair"),
        pytest.param(
            {"messages": NUMINA["messages"], "prompt": "1+1?"},
            EXAMPLE,
            id="messages-go-before-half-a-pair",
        ),
        pytest.param(
            {"text": "plain", "question": None, "answer": None},
            Document("", "plain"),
            id="null-is-absent",
        ),
        pytest.param(
            {"instruction": "Add", "input": "1+1", "output": "2"},
            Document("Add\n1+1", "2"),
            id="alpaca",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_the_columns_of_known_data_sets_are_found(
    tmp_path: Path, row: dict, expected: Document, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list([row]).to_parquet(path)
    else:
        path.write_text(json.dumps(row if suffix == ".jsonl" else [row]))
    assert readers.load_documents(str(path)) == [expected]


def chat(*turns: str) -> dict:
    return {
        "messages": [
            dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns
        ]
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat("system: Think.", "user: 1+1?", "assistant: 2"), Document("Think.\n\n1+1?", "2")),
        (
            chat("user: 1+1?", "assistant: 2", "user: +1?", "assistant: 3"),
            Document("1+1?\n\n2\n\n+1?", "3"),
        ),
        (chat("user: 1+1?", "assistant: 2", "user: thanks"), Document("1+1?", "2")),
    ],
)
def test_the_last_assistant_turn_is_the_answer(
    tmp_path: Path, row: dict, expected: Document
) -> None:
    assert readers.load_documents(write_rows(tmp_path / "a.jsonl", row)) == [expected]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hello"}, r"line 1: messages must be a list of"),
        ({"messages": [{"role": "user", "content": None}]}, r"line 1: messages must be a list of"),
        (chat("user: 1+1?"), r"line 1: none of the messages has the role assistant"),
        (chat("assistant: 2"), r"line 1 has an empty question"),
        ({"question": "  ", "answer": "2"}, r"line 1 has an empty question"),
    ],
)
def test_messages_without_question_or_answer_are_named(
    tmp_path: Path, row: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        readers.load_documents(write_rows(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Form(answer_column="answer"), Document("1+1?", "2")),
        (Form(question_column="level", answer_column="answer"), Document("1", "2")),
        (Form(question_column="solution", answer_column="problem"), Document("It is 2.", "1+1?")),
        (Form(text_column="solution"), Document("", "It is 2.")),
        (Form(answer_column="solutoin"), None),
        (Form(text_column="txt"), None),
    ],
)
def test_named_columns_are_taken_or_missed(
    tmp_path: Path, form: Form, expected: Document | None
) -> None:
    source = write_rows(tmp_path / "a.jsonl", MATH)
    if expected is not None:
        assert readers.load_documents(source, form) == [expected]
        return
    with pytest.raises(
        ValueError,
        match=r"line 1(: question and answer must be text, not int| has .* does not fit them)",
    ):
        readers.load_documents(source, form)


@pytest.mark.parametrize(
    ("columns", "tests"),
    [
        ({}, ""),
        ({"test_list": None}, ""),
        ({"test_list": "assert f()"}, ""),
        ({"test_list": ["assert f()", "assert g()"]}, "assert f()\nassert g()"),
        (
            {"test_list": ["assert f()"], "test_setup_code": "import math"},
            "import math\nassert f()",
        ),
        (
            {"test_list": ["assert f()"], "test_imports": ["import math", "import re"]},
            "import math\nimport re\nassert f()",
        ),
    ],
)
def test_a_row_of_code_brings_its_tests(tmp_path: Path, columns: dict, tests: str) -> None:
    row = {"question": "Write f.", "answer": "def f(): ...", **columns}
    (document,) = readers.load_documents(write_rows(tmp_path / "a.jsonl", row))
    assert document == Document("Write f.", "def f(): ...", tests=tests)

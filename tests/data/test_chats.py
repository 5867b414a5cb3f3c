"""Chats in every common form become a question, all that was said before, and the last answer."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast.data import readers
from ptl_fast.data.documents import Document
from support.files import write_rows

USER, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}],
}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"messages": [USER, ANSWER]}, id="messages"),
        pytest.param({"prompt": [USER], "completion": [ANSWER]}, id="prompt-completion"),
        pytest.param({"prompt": [USER], "completion": "2"}, id="completion-text"),
        pytest.param({"prompt": "1 + 1?", "completion": [ANSWER]}, id="prompt-text"),
        pytest.param(
            {"messages": [{**USER, "content": parts("1 ", "+ 1?")}, {**ANSWER, "content": ["2"]}]},
            id="content-parts",
        ),
        pytest.param(
            {
                "conversations": [
                    {"from": "human", "value": "1 + 1?"},
                    {"from": "gpt", "value": "2"},
                ]
            },
            id="sharegpt",
        ),
        pytest.param({"conversations": [USER, ANSWER]}, id="conversations"),
        pytest.param(
            {"messages": [USER, ANSWER, {"role": "user", "content": "Thanks."}]}, id="ends"
        ),
    ],
)
def test_every_form_is_the_same_exchange(row: dict[str, Any], tmp_path: Path) -> None:
    assert readers.load_documents(write_rows(tmp_path / "a.jsonl", row)) == [
        Document("1 + 1?", "2")
    ]


def test_system_turns_tool_calls_and_results_are_part_of_the_question(tmp_path: Path) -> None:
    tool, system = {"role": "tool", "content": "2"}, {"role": "system", "content": "Be brief."}
    row = {"messages": [system, USER, CALL, tool, ANSWER]}
    (found,) = readers.load_documents(write_rows(tmp_path / "a.jsonl", row))
    said = found.question.split("\n\n")
    assert (said[0], said[1], said[3], found.answer) == ("Be brief.", "1 + 1?", "2", "2")
    assert '"name": "add"' in said[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER]}, "none of the messages has the role assistant"),
        ({"messages": "text"}, "messages must be a list of"),
        ({"messages": [{"content": "x"}]}, "messages must be a list of"),
        (
            {"messages": [{**USER, "content": [{"type": "image", "url": "x"}]}, ANSWER]},
            "a message holds a part of type image; only text can be read",
        ),
        ({"messages": [ANSWER]}, "has an empty question"),
    ],
)
def test_what_is_no_exchange_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"line 1.*{message}"):
        readers.load_documents(write_rows(tmp_path / "a.jsonl", row))


def test_null_messages_are_left_out(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]
    file = write_rows(tmp_path / "a.jsonl", {"messages": chat}, {"messages": None})
    assert readers.load_documents(file) == [Document("1?", "1")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"conversations": [{"from": ["x"], "value": "?"}]},
            "line 1: conversations must be a list",
        ),
        ({"question": "?", "answer": ["a", "b"]}, "line 1: answer must be a list"),
    ],
)
def test_a_chat_of_another_form_names_its_column(row: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        readers.load_documents(write_rows(tmp_path / "a.jsonl", row))

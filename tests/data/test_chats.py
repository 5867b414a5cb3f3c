"""Chats in every common form become a question, all that was said before, and the last answer; or
they are written by the tokenizer's chat template, which tells the assistant's turns from the rest.
"""

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.data import chats, readers
from ptl_fast.data.documents import CHAT_TEMPLATES, EXCHANGE, Chat, Document, Form
from support import chat_templates
from support.chat_templates import with_template
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


def exchange(*texts: str) -> Document:
    """A chat of these turns, user and assistant in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return Document(texts[0], texts[-1], chat=Chat(turns))


def answers(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[str]:
    """The texts of the tokens that are answers."""
    (found,) = chats.encode([document], tokenizer, find_answers=True)
    borders = found.answers
    assert borders is not None
    pairs = zip(borders[::2], borders[1::2], strict=True)
    return [str(tokenizer.decode(found.ids[begin:end])) for begin, end in pairs]


TWO = ("1+1?", "<think>hm</think>2", "2+2?", "<think>ho</think> 4 ")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("CHATML", ["<think>hm</think>2<|im_end|>", "<think>ho</think> 4 <|im_end|>"]),
        ("THINKING", ["2<|im_end|>", "<think>ho</think> 4 <|im_end|>"]),
        ("INSTRUCT", ["<think>hm</think>2<|endoftext|>", "<think>ho</think> 4<|endoftext|>"]),
        ("LATE_SYSTEM", ["<think>hm</think>2<|endoftext|>", "<think>ho</think> 4 <|endoftext|>"]),
        ("PLAIN", ["<think>hm</think>2\n", "<think>ho</think> 4 \n<|endoftext|>"]),
        ("MARKED", ["<think>hm</think>2<|im_end|>", "<think>ho</think> 4 <|im_end|>"]),
    ],
)
def test_every_turn_of_the_assistant_is_an_answer_up_to_the_token_that_ends_it(
    tokenizer: PreTrainedTokenizerBase, template: str, expected: list[str]
) -> None:
    talks = with_template(tokenizer, getattr(chat_templates, template))
    assert answers(talks, exchange(*TWO)) == expected


@pytest.mark.parametrize("template", ["CHATML", "THINKING", "INSTRUCT", "LATE_SYSTEM", "MARKED"])
def test_a_chat_is_written_as_transformers_writes_it(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    """With one first token, and what ends the last turn as the only end."""
    talks = with_template(tokenizer, getattr(chat_templates, template))
    document = exchange(*TWO)
    expected = talks.apply_chat_template(document.messages, return_dict=False)
    plain = Document("1+1?", "2")
    found = list(chats.encode([plain, document, plain], talks, find_answers=True))
    assert found[1].ids == expected
    assert found[0] == found[2]
    assert [each.ids for each in chats.encode([plain, document], talks)] == [
        each.ids for each in found[:2]
    ]


def test_a_chat_whose_template_ends_no_turn_gets_one_end_of_sequence(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    talks = with_template(tokenizer, chat_templates.PLAIN)
    (found,) = chats.encode([exchange("1?", "1")], talks)
    assert talks.decode(found.ids) == "user: 1?\nassistant: 1\n<|endoftext|>"


def test_answers_are_those_that_a_reader_of_the_tokens_finds(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The oracle goes through ChatML's tokens: from behind assistant and a line break to the end of
    the turn.
    """
    talks, drawn = with_template(tokenizer, chat_templates.CHATML), random.Random(4)
    begin, end = (talks.convert_tokens_to_ids(each) for each in ("<|im_start|>", "<|im_end|>"))
    header = talks("assistant\n", add_special_tokens=False)["input_ids"]
    documents = []
    for _ in range(40):
        words = ["", "assistant\n", "4", " 5 ", "user", "\n\n", "é€"]
        turns = [
            {
                "role": drawn.choice(["system", "user", "assistant", "tool"]),
                "content": "".join(said),
            }
            for said in [drawn.choices(words, k=4) for _ in range(drawn.randint(1, 7))]
        ]
        documents.append(Document("?", "!", chat=Chat([*turns, {**turns[0], "role": "assistant"}])))
    num_marked = 0
    for found in chats.encode(documents, talks, find_answers=True):
        expected, place = bytearray(len(found.ids)), 0
        while place < len(found.ids):
            if found.ids[place] == begin and found.ids[place + 1 :][: len(header)] == header:
                first = place + 1 + len(header)
                place = found.ids.index(end, first)
                expected[first : place + 1] = b"\1" * (place + 1 - first)
            place += 1
        assert chats.marks(found.answers, len(found.ids)) == bytes(expected)
        num_marked += sum(expected)
    assert num_marked > 100


def test_a_turn_that_the_template_leaves_out_is_no_answer(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Nor is what stands in its place."""
    forgetful = (
        "{%- for message in messages %}{%- if message.role == 'user' or loop.last %}"
        "{{- message.role + ':' + message.content + eos_token }}{%- endif %}{%- endfor %}"
    )
    talks = with_template(tokenizer, forgetful)
    assert answers(talks, exchange("1?", "1", "2?", "2")) == ["2<|endoftext|>"]


CALLED = [USER, CALL, {"role": "tool", "content": "2"}, {**ANSWER, "content": "It is 2"}]


@pytest.mark.parametrize(
    ("template", "call"),
    [
        ("CHATML", "<tool>{}</tool><|im_end|>"),
        ("TEXT_CALLS", "<tool>{}<|im_end|>"),
        # a template that knows no calls gets them as text, also without content
        (
            "MARKED",
            '[{"type": "function", "function": {"name": "add", "arguments": {}}}]<|im_end|>',
        ),
    ],
)
def test_tool_calls_are_answers(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, template: str, call: str
) -> None:
    """Their arguments are JSON once, not text of JSON in JSON."""
    file = write_rows(tmp_path / "a.jsonl", {"messages": CALLED, "tools": None})
    (document,) = readers.load_documents(file, Form(chats=CHAT_TEMPLATES["auto"]))
    talks = with_template(tokenizer, getattr(chat_templates, template))
    assert answers(talks, document) == [call, "It is 2<|im_end|>"]


@pytest.mark.parametrize("tools", [[{"name": "add", "strict": None}], '[{"name": "add"}]'])
def test_tools_reach_the_template(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, tools: Any
) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"messages": [USER, ANSWER], "tools": tools})
    (document,) = readers.load_documents(file, Form(chats=CHAT_TEMPLATES["auto"]))
    talks = with_template(tokenizer, "{{- tools[0] | tojson }}" + chat_templates.CHATML)
    (found,) = chats.encode([document], talks)
    assert str(talks.decode(found.ids)).startswith('{"name": "add"}<|im_start|>user\n1 + 1?')


def test_which_rows_are_chats(tmp_path: Path) -> None:
    """auto: those that hold one; chat: questions with answers too, plain text never."""
    rows = [{"messages": [USER, ANSWER]}, {"question": "1?", "answer": "1"}, {"text": "Text."}]
    file = write_rows(tmp_path / "a.jsonl", *rows)
    whole = Chat([USER, ANSWER])
    for name, expected in (("auto", [whole, None, None]), ("chat", [whole, EXCHANGE, None])):
        found = readers.load_documents(file, Form(chats=CHAT_TEMPLATES[name]))
        assert [document.chat for document in found] == expected
        assert [document.question for document in found] == ["1 + 1?", "1?", ""]
    assert [document.chat for document in readers.load_documents(file)] == [None] * 3
    demo = readers.load_documents("ptl-demo", Form(chats=CHAT_TEMPLATES["chat"]), 1)
    assert demo[0].messages == [
        {"role": "user", "content": demo[0].question},
        {"role": "assistant", "content": demo[0].answer},
    ]


def test_answers_of_text_are_the_answer_and_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    documents = [Document("1+1?", "It is 2."), Document("", "Text.")]
    joined, text = chats.encode(documents, tokenizer, find_answers=True)
    assert answers(tokenizer, documents[0]) == ["It is 2.<|endoftext|>"]
    assert text.answers is None
    assert chats.marks(text.answers, 3) == b"\1\1\1"
    assert [joined.ids, text.ids] == [each.ids for each in chats.encode(documents, tokenizer)]


def test_the_turns_that_a_template_writes_otherwise_are_found_whole(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Qwen3's: a call in an earlier turn, without the place for thoughts that a last turn has."""
    calls = "(message.tool_calls | string if message.tool_calls else '')"
    template = chat_templates.THINKING.replace("+ '<|im_end|>", f"+ {calls} + '<|im_end|>")
    talks = with_template(tokenizer, template)
    call, other = ({"tool_calls": [number], "role": "assistant"} for number in (7, 8))
    turns = [USER, {**call, "content": ""}, USER, {**other, "content": "so"}, USER, ANSWER]
    found = answers(talks, Document("?", "2", chat=Chat(turns)))
    assert found == ["[7]<|im_end|>", "so[8]<|im_end|>", "<think></think>2<|im_end|>"]


def test_a_template_that_wants_no_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """It would leave out what is said, without a word."""
    talks = with_template(
        tokenizer,
        "{%- for message in messages %}{%- for part in message.content %}{%- if part.text %}"
        "{{- part.text }}{%- endif %}{%- endfor %}{{- eos_token }}{%- endfor %}",
    )
    with pytest.raises(ValueError, match="leaves out what is said, as text; use --template lines"):
        list(chats.encode([exchange("1?", "1")], talks))


def test_what_cannot_be_written_names_the_fix(tokenizer: PreTrainedTokenizerBase) -> None:
    system = {"role": "system", "content": "Be brief."}
    document = Document("?", "2", chat=Chat([system, USER, ANSWER]))
    talks = with_template(tokenizer, chat_templates.INSTRUCT)
    refused = (
        "'Be brief.' .*Only user and assistant roles.*remove that row, or use --template lines"
    )
    with pytest.raises(ValueError, match=refused):
        list(chats.encode([document], talks))
    with pytest.raises(ValueError, match=r"has no chat template; .*use --template lines"):
        list(chats.encode([document], tokenizer))


def test_the_question_of_a_chat_is_what_comes_before_its_last_answer() -> None:
    turns = chats.prompt_messages(exchange("1?", "1", "2?", "2"))
    assert [turn["content"] for turn in turns] == ["1?", "1", "2?"]

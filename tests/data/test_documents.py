"""Question and answer are joined by a template."""

import pytest

from ptl_fast.data import documents
from ptl_fast.data.documents import Document


def test_question_and_answer_are_joined_by_the_template() -> None:
    question, answer = "What is {answer} of {1}?", "42 {question}"
    assert (
        Document(question, answer).text
        == "Question: What is {answer} of {1}?\nAnswer: 42 {question}"
    )
    paper = Document(question, answer, documents.make_template("paper"))
    assert paper.text == "Question: What is {answer} of {1}?Answer: 42 {question}"
    own = Document(question, answer, documents.make_template("Q {question}\\n\\nA {answer}"))
    assert (own.prompt, own.text) == (
        "Q What is {answer} of {1}?\n\nA ",
        "Q What is {answer} of {1}?\n\nA 42 {question}",
    )
    plain = Document("", answer, documents.make_template("paper"))
    assert (plain.prompt, plain.text) == ("", answer)


def test_documents_with_chats_have_a_hash() -> None:
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]
    chats = [None, documents.EXCHANGE, documents.Chat(turns), documents.Chat(list(turns))]
    assert len({Document("1?", "1", chat=chat) for chat in chats}) == 3


def test_what_is_no_chat_is_joined_by_lines() -> None:
    for name in documents.CHAT_TEMPLATES:
        assert documents.make_template(name) == documents.TEMPLATES["lines"]


@pytest.mark.parametrize(
    "template",
    [
        "papre",
        "{question}",
        "{question} {answer}.",
        "{question}{question}{answer}",
        "{answer}{question}",
    ],
)
def test_bad_templates_are_explained(template: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown --template .* choose lines, paper, auto, chat, or give"
    ):
        documents.make_template(template)

"""A long text has the tokens of a short one, and takes a call of the tokenizer a piece."""

import random

import pytest
from transformers import PreTrainedTokenizerBase

from ptl_fast.data import chats, long_texts
from ptl_fast.data.documents import Document


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "PIECE", 100)


def problem(generator: random.Random) -> str:
    numbers = [generator.randrange(100) for _ in range(8)]
    return "\n".join(f"start with {a}, add {a}." for a in numbers) + "\n"


def test_pieces_join_to_the_text_and_end_at_lines() -> None:
    text = problem(random.Random(1)) * 5
    pieces = list(long_texts._pieces(text))
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") and 50 <= len(piece) <= 100 for piece in pieces[:-1])
    unbroken = "x" * 250
    assert list(map(len, long_texts._pieces(unbroken))) == [100, 100, 50]


@pytest.mark.parametrize("find_answers", [False, True])
def test_tokens_and_answers_are_those_of_one_call(
    find_answers: bool, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(2)
    documents = [
        Document(problem(generator), problem(generator)),
        Document("", problem(generator) * 3),
        Document("short", "text"),
    ]
    pieces = list(chats.encode(documents, tokenizer, find_answers))
    monkeypatch.setattr(long_texts, "PIECE", 10**6)
    whole = list(chats.encode(documents, tokenizer, find_answers))
    assert [(list(ids), answers) for ids, answers in pieces] == whole
    assert (pieces[0].answers is not None) == find_answers


def test_special_tokens_stand_around_the_whole() -> None:
    class Tokenizer:
        def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> dict:
            ids = [ord(letter) for letter in text]
            return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}

    ids, first = long_texts.encode(Tokenizer(), "a\n" * 200)  # type: ignore[arg-type]
    assert list(ids) == [1, *[97, 10] * 200, 2]
    assert first is None

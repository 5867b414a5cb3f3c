"""Token ids of very long texts, a piece at a time.

A tokenizer keeps about 150 bytes for each character until a text is finished: a document of 20 MB
took 3.3 GiB. A longer text than PIECE is divided after a line or a word, and each piece is a call
of its own. Where two meet, tokens may be others than in one call: at most a few in PIECE
characters.
"""

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 2**20  # characters
BORDERS = ("\n", " ")


def is_long(text: str) -> bool:
    """Whether the text takes more than one call."""
    return len(text) > PIECE


def encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, border: int | None = None
) -> tuple["array[int]", int | None]:
    """Tokenize a text in pieces, with the special tokens of a whole text around it.

    Args:
        border: a place in the text.

    Returns:
        (ids, the first token that ends behind the border; None if none does, or without a border)
    """
    ids: array[int] = array("i")
    first: int | None = None
    before, after = _special(tokenizer)
    ids.extend(before)
    start = 0
    for piece in _pieces(text):
        found: Any = tokenizer(
            piece,
            add_special_tokens=False,
            return_offsets_mapping=border is not None,
            verbose=False,
        )
        if border is not None and first is None and start + len(piece) > border:
            ends = (end for _, end in found["offset_mapping"])
            inside = (place for place, end in enumerate(ends) if start + end > border)
            place = next(inside, None)
            first = None if place is None else len(ids) + place
        ids.extend(found["input_ids"])
        start += len(piece)
    ids.extend(after)
    return ids, first


def _pieces(text: str) -> Iterator[str]:
    """The text, divided where a line or a word begins, or else anywhere."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            # a space belongs to the word behind it, in most vocabularies
            line, word = (text.rfind(each, start + PIECE // 2, end) for each in BORDERS)
            end = line + 1 if line >= 0 else word if word >= 0 else end
        yield text[start:end]
        start = end


def _special(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and behind a text."""
    bare: list[int] = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    whole: list[int] = tokenizer("a", verbose=False)["input_ids"]
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return whole[:place], whole[place + len(bare) :]
    return [], []

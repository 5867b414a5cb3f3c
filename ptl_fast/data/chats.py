"""Write documents as token ids, chats by the tokenizer's own chat template, and find the answers.

Answers are what a model is to produce: the assistant's turns, each with the token that ends it. Of
a question with an answer that a text template joins they are the answer and the end-of-sequence
token; of plain text everything.

Where a chat template marks the assistant's tokens (``{% generation %}``), it is believed. Most do
not, and then the turns are found by rendering the chat again, up to a turn or with a placeholder in
its place, and by comparing. What neither finds is counted as no answer: a token too few rather
than a wrong one.
"""

import bisect
import itertools
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ptl_fast.data import long_texts
from ptl_fast.data.documents import EXCHANGE, Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # documents per call of the tokenizer
# stands for an answer: no template changes it, and no text holds it
PLACEHOLDER = "ANSWER-5f0c41d7-STANDS-HERE"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""The first of consecutive characters or tokens, and the one after the last."""


class Encoded(NamedTuple):
    """A document's token ids, and which of them are answers."""

    ids: "list[int] | array[int]"
    """An array where the text is long."""
    answers: "array[int] | None"
    """First token of an answer and the one after its last, of each answer in turn: begin, end,
    begin, end, ... None: all tokens are answers, or it was not asked.
    """


def encode(
    documents: Sequence[Document],
    tokenizer: "PreTrainedTokenizerBase",
    find_answers: bool = False,
) -> Iterator[Encoded]:
    """Yield each document's token ids, in order.

    A document ends with the end-of-sequence token, if the tokenizer has one. A chat ends as its
    template ends it, and gets that token only if there is nothing that ends an assistant's turn.

    Args:
        find_answers: also find the answers, which takes about as long again.

    Raises:
        ValueError: there is a chat, and the tokenizer has no chat template or refuses the chat.
    """
    writer = (
        _Writer(tokenizer) if any(document.chat is not None for document in documents) else None
    )
    for first in range(0, len(documents), BATCH):
        batch = documents[first : first + BATCH]
        chats = [document for document in batch if document.chat is not None]
        texts = [document for document in batch if document.chat is None]
        written = {
            True: writer.encode(chats, find_answers) if writer is not None else iter(()),
            False: _encode_texts(texts, tokenizer, find_answers),
        }
        for document in batch:
            yield next(written[document.chat is not None])


def marks(answers: Sequence[int] | None, length: int) -> bytes:
    """A byte for each token of a document, 1 inside answers and 0 elsewhere.

    Args:
        answers: as in ``Encoded``.
        length: tokens of the document.
    """
    if answers is None:
        return b"\1" * length
    marked = bytearray(length)
    for begin, end in zip(answers[::2], answers[1::2], strict=True):
        marked[begin:end] = b"\1" * (end - begin)
    return bytes(marked)


def prompt_messages(document: Document) -> list[dict[str, Any]]:
    """The turns of a chat before its last answer: what the model is asked."""
    return document.messages[:-1]


def require_template(tokenizer: "PreTrainedTokenizerBase", flag: str) -> None:
    """Raise ValueError, which begins with ``flag``, if the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"{flag}: the model's tokenizer has no chat template; put a chat_template.jinja into"
            " the model's folder, or use --template lines"
        )


def _encode_texts(
    documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase", find_answers: bool
) -> Iterator[Encoded]:
    """Yield the ids of documents that are no chats."""
    if not documents:
        return
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    texts = ["" if long_texts.is_long(each.text) else each.text for each in documents]
    # offsets only where they are needed: they take longer than the ids
    offsets = {"return_offsets_mapping": True} if find_answers else {}
    found = tokenizer(texts, verbose=False, **offsets)
    for index, (document, ids) in enumerate(zip(documents, found["input_ids"], strict=True)):
        border = len(document.prompt) if find_answers and document.question else None
        if long_texts.is_long(document.text):
            ids, first = long_texts.encode(tokenizer, document.text, border)
        elif border is not None:
            # a token counts if it ends inside the answer, even if it begins in the prompt
            ends = (last for _, last in found["offset_mapping"][index])
            inside = (place for place, last in enumerate(ends) if last > border)
            first = next(inside, None)
        # some tokenizers add the end-of-sequence token themselves
        if list(ids[-1:]) != end:
            ids.extend(end)
        answers = None
        if border is not None:
            answers = array("i", [len(ids) if first is None else first, len(ids)])
        yield Encoded(ids, answers)


class _Writer:
    """Writes chats by a tokenizer's chat template, and finds the assistant's turns in them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        require_template(tokenizer, "the data holds chats")
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self.special = tuple({*tokenizer.all_special_tokens, *(str(x) for x in added if x.special)})
        self.end_of_turn = self._end_of_turn()

    def encode(self, documents: Sequence[Document], find_answers: bool) -> Iterator[Encoded]:
        """Yield the ids of chats, in order."""
        if not documents:
            return
        chats, texts = zip(*(self._written(document) for document in documents), strict=True)
        # the template writes all special tokens itself
        found = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=find_answers,
            verbose=False,
        )
        for index, (turns, ids) in enumerate(zip(chats, found["input_ids"], strict=True)):
            answers = None
            if find_answers:
                offsets = found["offset_mapping"][index]
                answers = self._answers(turns, texts[index], ids, offsets)
            yield self._ended(ids, answers)

    def _ended(self, ids: list[int], answers: "array[int] | None") -> Encoded:
        """With the end-of-sequence token, where the template ends the assistant's turn by none."""
        end = self.tokenizer.eos_token_id
        if self.end_of_turn or end is None or ids[-1:] == [end]:
            return Encoded(ids, answers)
        if answers and answers[-1] == len(ids):
            answers = answers[:-1] + array("i", [len(ids) + 1])
        return Encoded([*ids, end], answers)

    def _turns(self, document: Document) -> "_Turns":
        assert document.chat is not None
        turns = _Turns(document.messages, list(document.chat.tools) or None)
        if "tool_calls" in self._template(turns):
            return turns
        return turns._replace(messages=[_as_text(message) for message in turns.messages])

    def _answers(
        self, turns: "_Turns", text: str, ids: list[int], offsets: Sequence[Span]
    ) -> "array[int]":
        """Borders of the assistant's turns, in tokens."""
        if GENERATION.search(self._template(turns)):
            return self._marked_by_template(turns, ids)
        ends, borders = [end for _, end in offsets], array("i")
        for index, message in enumerate(turns.messages):
            if message["role"] == "assistant":
                span = self._by_beginning(turns, text, index)
                # a token belongs to the turn in which it ends, as only there it is known
                span = span or self._by_placeholder(turns, text, index) or (0, 0)
                places = [bisect.bisect_right(ends, border) for border in span]
                borders.extend(places if places[0] < places[1] else [])
        return borders

    def _marked_by_template(self, turns: "_Turns", ids: list[int]) -> "array[int]":
        """The assistant's tokens as the template's ``{% generation %}`` says."""
        marked: Any = self.tokenizer.apply_chat_template(
            turns.messages, turns.tools, return_dict=True, return_assistant_tokens_mask=True
        )
        borders = _borders(marked["assistant_masks"])
        # some templates mark the text alone, and the token behind it ends the turn
        for place in range(1, len(borders), 2):
            if ids[borders[place] : borders[place] + 1] == [self.tokenizer.eos_token_id]:
                borders[place] += 1
        return borders

    def _by_beginning(self, turns: "_Turns", text: str, index: int) -> Span | None:
        """Characters of turn ``index``: what the chat up to it has more than the question for it.

        None where the chat does not begin so: some templates write earlier turns differently once
        others follow, such as without their reasoning.
        """
        if index == 0:
            return None
        asked = self._attempt(turns.up_to(index), add_generation_prompt=True)
        # where nothing asks for an answer, what precedes it may be written with it
        if asked == self._attempt(turns.up_to(index)):
            return None
        is_last = index + 1 == len(turns.messages)
        answered = text if is_last else self._attempt(turns.up_to(index + 1))
        begins = asked and text.startswith(asked) and text.startswith(answered)
        if not begins or len(answered) <= len(asked):
            return None
        # the line break behind the token that ends the turn is the template's
        end = answered.rstrip()
        ends = end.endswith(self.special) and len(end) > len(asked)
        return len(asked), len(end) if ends else len(answered)

    def _by_placeholder(self, turns: "_Turns", text: str, index: int) -> Span | None:
        """Characters of turn ``index``: what stands where a placeholder is written in its place.

        In place of the whole turn or, where the chat is then written otherwise, of its content.
        """
        bare = {"role": "assistant", "content": PLACEHOLDER}
        for changed in (bare, {**turns.messages[index], **bare}):
            messages = [*turns.messages[:index], changed, *turns.messages[index + 1 :]]
            written = self._attempt(turns._replace(messages=messages))
            before, found, after = written.partition(PLACEHOLDER)
            stop = len(text) - len(after)
            same = text.startswith(before) and text.endswith(after) and len(before) < stop
            if found and same and PLACEHOLDER not in after:
                return len(before), stop + len(self._ending(after))
        return None

    def _ending(self, after: str) -> str:
        """The end of a turn with which the text behind it begins, and spaces before that."""
        stripped = after.lstrip()
        if not self.end_of_turn or not stripped.startswith(self.end_of_turn):
            return ""
        return after[: len(after) - len(stripped) + len(self.end_of_turn)]

    def _end_of_turn(self) -> str:
        """The special token that the template puts behind the assistant's last turn, if any.

        Raises:
            ValueError: the template does not write what is said.
        """
        turns = self._turns(Document("?", PLACEHOLDER, chat=EXCHANGE))
        written = self._attempt(turns)
        _, found, after = written.partition(PLACEHOLDER)
        # those of models that also see want lists of parts, and leave out texts
        if written and not found:
            raise ValueError(
                "the tokenizer's chat template leaves out what is said, as text; use --template"
                " lines"
            )
        ends = (token for token in self.special if after.lstrip().startswith(token))
        # the longest: one special token's text may begin with another's
        return max(ends, key=len, default="")

    def _written(self, document: Document) -> "tuple[_Turns, str]":
        """The chat, and its text.

        Raises:
            ValueError: the template refuses it, for example for a system turn.
        """
        turns = self._turns(document)
        try:
            return turns, self._text(turns)
        except Exception as error:  # jinja's own, and what a template's expressions raise
            # a few templates want the arguments of tool calls as text
            as_text = turns._replace(messages=[_with_text(each) for each in turns.messages])
            if as_text != turns and (text := self._attempt(as_text)):
                return as_text, text
            raise ValueError(
                "the tokenizer's chat template cannot write the chat that begins"
                f" {str(turns.messages[0]['content'])[:60]!r} ({type(error).__name__}: {error});"
                " remove that row, or use --template lines"
            ) from error

    def _attempt(self, turns: "_Turns", add_generation_prompt: bool = False) -> str:
        """A changed chat as text; empty if the template refuses it."""
        try:
            return self._text(turns, add_generation_prompt)
        except Exception:  # as in ``_written``; the turn is then found otherwise, or not at all
            return ""

    def _text(self, turns: "_Turns", add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns.messages,
                turns.tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )

    def _template(self, turns: "_Turns") -> str:
        # some tokenizers have a template of its own for chats with tools
        return self.tokenizer.get_chat_template(None, turns.tools)


class _Turns(NamedTuple):
    """A chat as a tokenizer takes it."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None

    def up_to(self, index: int) -> "_Turns":
        """The turns before ``index``."""
        return self._replace(messages=self.messages[:index])


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its tool calls in its text, for templates that know no such calls."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    written = json.dumps(calls, ensure_ascii=False)
    return {
        **rest,
        "content": f"{message['content']}\n{written}" if message["content"] else written,
    }


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls as JSON text."""
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [_call_with_text(call) for call in message["tool_calls"]]}


def _call_with_text(call: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = dict(call["function"])
    if not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": function}


def _borders(counted: Iterable[object]) -> "array[int]":
    """The borders of each run of true values: begin, end, begin, end, ...

    >>> _borders([0, 1, 1, 0, 1]).tolist()
    [1, 3, 4, 5]
    """
    values = [False, *map(bool, counted), False]
    changes = (
        index for index, (one, next_one) in enumerate(itertools.pairwise(values)) if one != next_one
    )
    return array("i", changes)

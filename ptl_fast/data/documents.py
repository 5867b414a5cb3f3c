"""Documents (a question with its answer, a chat, or plain text), and how a row becomes one.

A question and its answer are joined by a template. Chats go through the chat template of the
model's tokenizer, which ``ptl_fast.data.chats`` applies: it alone has the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ptl_fast.config.checking import nearest

# "lines" is the usual format of few-shot prompts; "paper" that of arXiv 2602.04919's published
# code, which puts nothing between the question and the word Answer
TEMPLATES = {
    "lines": "Question: {question}\nAnswer: {answer}",
    "paper": "Question: {question}Answer: {answer}",
}


@dataclass(frozen=True)
class ChatUse:
    """Which documents go through the tokenizer's chat template."""

    pairs: bool
    """Questions with answers too, as a chat of one exchange; else only rows that are chats."""
    required: bool
    """Whether a tokenizer without a chat template is an error; else chats are joined as text."""


# values of --template that are no texts; what is no chat is then joined by "lines"
CHAT_TEMPLATES = {
    "auto": ChatUse(pairs=False, required=False),
    "chat": ChatUse(pairs=True, required=True),
}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation up to the assistant's last turn, in the form that chat templates take."""

    # left out of the hash: dicts have none, and question and answer tell most documents apart
    messages: Sequence[dict[str, Any]] = field(default=(), hash=False)
    """Of each turn role, content (text) and what else the row has, such as tool_calls. Empty for
    one exchange, the document's question and answer: they are not stored twice.
    """
    tools: Sequence[dict[str, Any]] = field(default=(), hash=False)
    """JSON schemas of the functions that the assistant could call."""


EXCHANGE = Chat()
"""The chat of a document that has only its question and its answer."""


class Document(NamedTuple):
    """One example: a question with its answer, a chat, or plain text."""

    question: str
    """Of a chat all that was said before the last answer; empty for plain text."""
    answer: str
    """The answer (the last one of a chat), or the plain text itself."""
    template: str = TEMPLATES["lines"]
    chat: Chat | None = None
    """If set, the document is written by the tokenizer's chat template, and ``template``,
    ``prompt`` and ``text`` have no use: see ``ptl_fast.data.chats``.
    """
    tests: str = ""
    """Python statements that fail unless the code in an answer is right; empty if there are none.
    """

    @property
    def prompt(self) -> str:
        """The text before the answer: empty for plain text."""
        # replace and not format: a template of the user's may hold other braces
        return (
            self.template.removesuffix("{answer}").replace("{question}", self.question)
            if self.question
            else ""
        )

    @property
    def text(self) -> str:
        """Prompt and answer: what is tokenized for training."""
        return self.prompt + self.answer

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The turns of a chat, or question and answer as two turns."""
        if self.chat is not None and self.chat.messages:
            return list(self.chat.messages)
        return [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.answer},
        ]


@dataclass(frozen=True)
class Form:
    """How rows become documents: which columns to read, and the template.

    None detects a column. Columns that are named must be present: either the text column, or those
    of question and answer; if only one of these two is named, the other is detected.
    """

    question_column: str | None = None
    answer_column: str | None = None
    text_column: str | None = None
    template: str = TEMPLATES["lines"]
    chats: ChatUse | None = None
    """Which documents are chats; None: none, the turns of a chat are joined as text."""

    @property
    def named(self) -> list[str]:
        """The columns that must be present."""
        columns = (self.question_column, self.answer_column, self.text_column)
        return [column for column in columns if column is not None]

    @property
    def flags(self) -> str:
        """The named columns as command-line flags, for messages; empty if none is named."""
        names = ("question_column", "answer_column", "text_column")
        return " ".join(
            f"--{name.replace('_', '-')} {getattr(self, name)}"
            for name in names
            if getattr(self, name) is not None
        )


def make_template(template: str) -> str:
    r"""Return a template by its name in TEMPLATES, or a custom one, in which ``\n`` is a new line.

    For a name in CHAT_TEMPLATES it is that of documents which are no chats.

    Raises:
        ValueError: it is no known name, and not a text that holds {question} once and {answer}
            once, at the end.
    """
    # the answer must come last: all that precedes it is the prompt
    name = "lines" if template in CHAT_TEMPLATES else template
    text = TEMPLATES.get(name, template.replace("\\n", "\n"))
    if (
        text.count("{question}") != 1
        or text.count("{answer}") != 1
        or not text.endswith("{answer}")
    ):
        raise ValueError(
            f"unknown --template {template!r}; choose {', '.join(TEMPLATES)},"
            f" {', '.join(CHAT_TEMPLATES)}, or give a text that"
            f" holds {{question}} once and"
            f" ends with {{answer}}{nearest(template, [*TEMPLATES, *CHAT_TEMPLATES])}"
        )
    return text

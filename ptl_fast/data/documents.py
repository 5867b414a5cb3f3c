"""A document: a question and its answer, or plain text, and the template that joins them."""

from dataclasses import dataclass
from typing import NamedTuple

# lines is what few-shot prompts look like; paper is the form of arXiv 2602.04919's published code,
# where nothing stands between.
TEMPLATES = {
    "lines": "Question: {question}\nAnswer: {answer}",
    "paper": "Question: {question}Answer: {answer}",
}


class Document(NamedTuple):
    """One example; ``question`` is empty for plain text. ``text`` is the prompt and the answer;
    evaluation counts the answer.
    """

    question: str
    answer: str
    template: str = TEMPLATES["lines"]

    @property
    def prompt(self) -> str:
        return (
            self.template.removesuffix("{answer}").replace("{question}", self.question)
            if self.question
            else ""
        )

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Form:
    """How rows become documents: named columns instead of the detected ones, and the template that
    joins question and answer.

    A row must then have a named column; where only the question's or the answer's is named, the
    other is detected.
    """

    question_column: str | None = None
    answer_column: str | None = None
    text_column: str | None = None
    template: str = TEMPLATES["lines"]

    @property
    def flags(self) -> str:
        """The named columns as the user gave them, for messages."""
        names = ("question_column", "answer_column", "text_column")
        return " ".join(
            f"--{name.replace('_', '-')} {getattr(self, name)}"
            for name in names
            if getattr(self, name) is not None
        )


def make_template(template: str) -> str:
    r"""The template of a name, or one's own with ``\n`` for a new line.

    Raises:
        ValueError: neither a known name, nor a text that holds {question} once and ends with its
            only {answer}.
    """
    text = TEMPLATES.get(template, template.replace("\\n", "\n"))
    if (
        text.count("{question}") != 1
        or text.count("{answer}") != 1
        or not text.endswith("{answer}")
    ):
        raise ValueError(
            f"unknown --template {template!r}; choose {', '.join(TEMPLATES)}, or give a text that"
            f" holds {{question}} once and"
            " ends with {answer}"
        )
    return text

"""Documents (a question with its answer, or plain text), and the template that joins the two."""

from dataclasses import dataclass
from typing import NamedTuple

# "lines" is the usual format of few-shot prompts; "paper" that of arXiv 2602.04919's published
# code, which puts nothing between the question and the word Answer
TEMPLATES = {
    "lines": "Question: {question}\nAnswer: {answer}",
    "paper": "Question: {question}Answer: {answer}",
}


class Document(NamedTuple):
    """One example: a question with its answer, or plain text."""

    question: str
    """Empty for plain text."""
    answer: str
    """The answer, or the plain text itself. Evaluation scores these tokens only."""
    template: str = TEMPLATES["lines"]

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

    Raises:
        ValueError: it is no known name, and not a text that holds {question} once and {answer}
            once, at the end.
    """
    # the answer must come last: all that precedes it is the prompt
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

"""Find the columns of a row that hold the question, the answer or plain text."""

import functools
import itertools
from typing import Any

from ptl_fast.data.documents import Form

# (question, answer) columns, in the order in which they are looked for. Where both columns of a
# pair exist they beat mixed ones: of {problem, solution, answer} the solution is taken, because the
# answer is only its last line.
PAIRS = (
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("instruction", "output"),
)
QUESTION_COLUMNS, ANSWER_COLUMNS = zip(*PAIRS, strict=True)
MESSAGES_COLUMN = "messages"
TEXT_COLUMNS = ("text", "content")


def _question_and_answer(row: dict, where: str, form: Form) -> tuple[str, str]:
    """Return a row's (question, answer), stripped; the question of plain text is empty.

    Args:
        where: file and line, for messages.

    Raises:
        ValueError: the row lacks known columns, holds no text in them, or has an empty question.
    """
    # a table's null means that this row lacks the column
    columns = _find_columns(
        tuple(column for column, value in row.items() if value is not None), form
    )
    if columns is None:
        raise ValueError(
            f"{where} has the columns {', '.join(map(str, row)) or '(none)'};"
            f" {_expected(row, form)}"
        )
    question_column, answer_column = columns
    if answer_column == MESSAGES_COLUMN:
        question, answer = _last_exchange(row[MESSAGES_COLUMN], where)
    else:
        question, answer = (
            "" if question_column is None else row[question_column],
            row[answer_column],
        )
    for value in (question, answer):
        _check_text(value, where)
    if not question.strip() and (question_column is not None or answer_column == MESSAGES_COLUMN):
        raise ValueError(f"{where} has an empty question; remove that line, or give {{text}} alone")
    # Alpaca's columns are instruction, input and output; the input is part of the question
    if question and isinstance(row.get("input"), str):
        question = f"{question}\n{row['input']}"
    return question.strip(), answer.strip()


@functools.lru_cache(1024)
def _find_columns(present: tuple[str, ...], form: Form) -> tuple[str | None, str] | None:
    """Return the names of the (question, answer) columns, or None if no known ones are present.

    Named columns come first, then the pairs, messages and plain text; the last two have no question
    column. Cached, because the rows of a file mostly have the same columns.
    """
    if form.text_column is not None and form.text_column in present:
        return None, form.text_column
    # only the text column is named, and this row lacks it: do not guess another
    if form.text_column is not None and form.question_column is None and form.answer_column is None:
        return None
    questions, answers = (
        [name for name in ([named] if named is not None else known) if name in present]
        for named, known in (
            (form.question_column, QUESTION_COLUMNS),
            (form.answer_column, ANSWER_COLUMNS),
        )
    )
    pairs = list(itertools.product(questions, answers))
    if pairs:
        return next((pair for pair in PAIRS if pair in pairs), pairs[0])
    # a named column must be used, so there is nothing to fall back to
    if form.flags:
        return None
    if MESSAGES_COLUMN in present:
        return None, MESSAGES_COLUMN
    # text beside a question without an answer is ambiguous: rather an error than a guess
    return next(((None, name) for name in TEXT_COLUMNS if name in present and not questions), None)


def _expected(row: dict, form: Form) -> str:
    """The second half of the error for unknown columns: what was expected, and the flag to give."""
    named = (
        (form.question_column, "--answer-column", ANSWER_COLUMNS),
        (form.answer_column, "--question-column", QUESTION_COLUMNS),
    )
    for column, other_flag, known in named:
        if column in row and other_flag not in form.flags:
            return (
                f"beside {column}, none of them is one of {', '.join(known)}; name it with"
                f" {other_flag}"
            )
    if form.flags:
        return f"{form.flags} does not fit them"
    return (
        f"expected a question ({', '.join(QUESTION_COLUMNS)}) with an answer"
        f" ({', '.join(ANSWER_COLUMNS)}), {MESSAGES_COLUMN}, or"
        f" {' or '.join(TEXT_COLUMNS)}; in --data and nll=FILE, --question-column, --answer-column"
        " and --text-column name others"
    )


def _last_exchange(messages: Any, where: str) -> tuple[str, str]:
    """Split a chat into (question, answer): the last assistant turn is the answer.

    The question is all turns before it (system, user, earlier answers), joined by blank lines.
    """
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in messages
    ):
        raise ValueError(
            f'{where}: messages must be a list of {{"role": ..., "content": ...}} with text in both'
        )
    answers = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not answers:
        raise ValueError(f"{where}: none of the messages has the role assistant; remove that line")
    *earlier, last = messages[: answers[-1] + 1]
    return "\n\n".join(
        turn["content"].strip() for turn in earlier if turn["content"].strip()
    ), last["content"]


def _check_text(value: Any, where: str) -> None:
    """Raise ValueError unless the value is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: question and answer must be text, not {type(value).__name__}")
    # JSON escapes such as "\ud800" decode to lone surrogates, on which tokenizers fail much later
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds half a surrogate pair, which is no text; correct that line"
        ) from error


def first_present(row: dict[str, Any], *names: str) -> Any:
    """Return the row's value in the first of the named columns that is present and not null.

    Raises:
        ValueError: none of them is.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"it has the columns {', '.join(row)}; expected {' or '.join(names)}")

"""Find the columns of a row that hold the question, the answer or plain text."""

import contextlib
import functools
import itertools
import json
import math
from typing import Any, NamedTuple

from ptl_fast.base import json_text
from ptl_fast.config.checking import nearest
from ptl_fast.data.documents import EXCHANGE, Chat, Document, Form

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
CHAT_COLUMNS = ("messages", "conversations")
MESSAGES = 'must be a list of {"role": ..., "content": ...} with text in both'
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
TEXT_COLUMNS = ("text", "content")


def document(row: dict, where: str, form: Form) -> Document:
    """Return the document that a row holds, with question and answer stripped.

    An answer or a text that is null is empty, as tables have it.

    Args:
        where: file and line, for messages.

    Raises:
        ValueError: the row lacks known columns, holds no text in them, or has an empty question.
    """
    # A table's null means that this row lacks the column; only where nothing else is found, that
    # the cell is empty.
    present = tuple(column for column, value in row.items() if value is not None)
    columns = _find_columns(present, form) or _find_columns(tuple(row), form)
    if columns is None:
        raise ValueError(
            f"{where} has the columns {', '.join(map(str, row)) or '(none)'};"
            f" {_expected(row, form)}"
        )
    question_column, answer_column = columns
    if row[answer_column] is None:
        return Document("", "", form.template)
    turns = _turns(row, question_column, answer_column, where)
    if turns is not None:
        question, answer = _last_exchange(turns, where)
    else:
        question = "" if question_column is None else as_text(row[question_column], where)
        answer = as_text(row[answer_column], where)
    if not question.strip() and (question_column is not None or turns is not None):
        raise ValueError(f"{where} has an empty question; remove that line, or give {{text}} alone")
    # Alpaca's columns are instruction, input and output; the input is part of the question
    if question and isinstance(row.get("input"), str):
        question = f"{question}\n{row['input']}"
    chat = _chat(row, turns, bool(question), form)
    return Document(question.strip(), answer.strip(), form.template, chat, tests_of(row))


def _chat(row: dict, turns: list["Turn"] | None, has_question: bool, form: Form) -> Chat | None:
    """The chat of a document, if the form wants it as one."""
    if form.chats is None:
        return None
    if turns is not None:
        tools = row.get("tools")
        # tables cannot hold schemas of different shapes as they are, so they are often JSON text
        with contextlib.suppress(ValueError):
            tools = json_text.loads(tools) if isinstance(tools, str) and tools.strip() else tools
        tools = tools if isinstance(tools, list) and all(isinstance(x, dict) for x in tools) else []
        last = _last_answer(turns)
        assert last is not None
        return Chat([turn.message for turn in turns[: last + 1]], _without_nulls(tools) or ())
    return EXCHANGE if has_question and form.chats.pairs else None


def tests_of(row: dict) -> str:
    """The tests that code in an answer must pass, as MBPP's rows have them: their imports or other
    setup, and a statement a line; empty if the row has no test_list of texts.
    """
    tests = row.get("test_list")
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        return ""
    # MBPP's "full" rows have test_setup_code, the "sanitized" ones test_imports
    setup = row.get("test_setup_code") or row.get("test_imports") or []
    return "\n".join([*([setup] if isinstance(setup, str) else map(str, setup)), *tests]).strip()


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
    chat = next((name for name in CHAT_COLUMNS if name in present), None)
    if chat is not None:
        return None, chat
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
        missing = [name for name in form.named if name not in row]
        hint = nearest(missing[0], map(str, row)) if missing else ""
        return f"{form.flags} does not fit them{hint}"
    return (
        f"expected a question ({', '.join(QUESTION_COLUMNS)}) with an answer"
        f" ({', '.join(ANSWER_COLUMNS)}), {' or '.join(CHAT_COLUMNS)}, or"
        f" {' or '.join(TEXT_COLUMNS)}; in --data and nll=FILE, --question-column, --answer-column"
        " and --text-column name others"
    )


def _turns(
    row: dict, question_column: str | None, answer_column: str, where: str
) -> list["Turn"] | None:
    """Return the turns of the chat that a row holds, or None where it holds text.

    Chats are a list of messages, a prompt and a completion that are such lists, or ShareGPT's
    conversations.
    """
    question = None if question_column is None else row[question_column]
    answer = row[answer_column]
    if answer_column in CHAT_COLUMNS or isinstance(question, list) or isinstance(answer, list):
        before = question if isinstance(question, list) else []
        if isinstance(question, str):
            before = [{"role": "user", "content": question}]
        after = answer
        if isinstance(answer, str) and answer_column not in CHAT_COLUMNS:
            after = [{"role": "assistant", "content": answer}]
        if not isinstance(after, list):
            raise ValueError(f"{where}: {answer_column} {MESSAGES}")
        return [_turn(each, f"{where}: {answer_column}") for each in [*before, *after]]
    return None


class Turn(NamedTuple):
    """A turn of a chat."""

    role: str
    text: str
    """What was said, tool calls as JSON."""
    message: dict[str, Any]
    """The same for a chat template: role, content (text), tool calls and whatever else there is."""


def _turn(message: Any, where: str) -> Turn:
    """Return one message of a chat, with content that is text."""
    if isinstance(message, dict) and "from" in message and "value" in message:  # ShareGPT's names
        role = SHAREGPT_ROLES.get(str(message["from"]), message["from"])
        message = {"role": role, "content": message["value"]}
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"{where} {MESSAGES}")
    content = text = message.get("content")
    if isinstance(content, list):  # content parts, of which only text can be read
        content = text = "".join(_part(part, where) for part in content)
    calls = message.get("tool_calls")
    if calls:  # what the model wrote to call a tool
        written = json.dumps(calls, ensure_ascii=False)
        text = f"{text}\n{written}" if text else written
    if text is None:
        raise ValueError(f"{where} {MESSAGES}")
    said = {**_without_nulls(message), "content": as_text(content, where)}
    if calls:
        said["tool_calls"] = [_call(call) for call in said["tool_calls"]]
    return Turn(message["role"], as_text(text, where), said)


def _call(call: Any) -> Any:
    """A tool call whose arguments are no JSON text but what it says: templates write the JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    with contextlib.suppress(ValueError):
        function = {**function, "arguments": json_text.loads(function["arguments"])}
    return {**call, "function": function}


def _without_nulls(value: Any) -> Any:
    """The value without keys that are null: tables give each row the keys of all rows."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise ValueError(f"{where}: a message holds a part of type {kind}; only text can be read")


def _last_answer(turns: list[Turn]) -> int | None:
    """The index of the assistant's last turn; None if there is none."""
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    return answers[-1] if answers else None


def _last_exchange(turns: list[Turn], where: str) -> tuple[str, str]:
    """Split a chat into (question, answer): the last assistant turn is the answer.

    The question is all turns before it (system, user, earlier answers), joined by blank lines.
    """
    index = _last_answer(turns)
    if index is None:
        raise ValueError(f"{where}: none of the messages has the role assistant; remove that line")
    said = [turn.text.strip() for turn in turns[:index]]
    return "\n\n".join(text for text in said if text), turns[index].text


def as_text(value: Any, where: str) -> str:
    """Return a cell as text: null and NaN are empty, and a number is written out.

    Raises:
        ValueError: it is neither text nor a number, or text that UTF-8 cannot hold.
    """
    if value is None:
        return ""
    # not a number, which is how tables write a missing one
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        # tables with missing values make floats of whole numbers
        whole = isinstance(value, float) and value.is_integer()
        return str(int(value) if whole else value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: question and answer must be text, not {type(value).__name__}")
    # JSON escapes such as "\ud800" decode to lone surrogates, on which tokenizers fail much later
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds half a surrogate pair, which is no text; correct that line"
        ) from error
    return value


class EmptyCell(ValueError):
    """A row has the column, and nothing in it."""


def first_present(row: dict[str, Any], *names: str) -> Any:
    """Return the row's value in the first of the named columns that is present and not empty.

    Raises:
        EmptyCell: those that are present are null, NaN or blank.
        ValueError: none of them is present.
    """
    for name in names:
        if not _is_empty(row.get(name)):
            return row[name]
    if any(name in row for name in names):
        raise EmptyCell(f"its {' and '.join(names)} is empty")
    raise ValueError(f"it has the columns {', '.join(row)}; expected {' or '.join(names)}")


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    # not a number, which is how tables write a missing one
    return value is None or (isinstance(value, float) and math.isnan(value))

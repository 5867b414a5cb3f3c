"""The problems of benchmarks.methods.reasoning, and what its models are calibrated on.

Test problems are the first of GSM8K's and MBPP's test files, the same for every cell, and nothing
else reads them. Choices are made on development problems: training problems that no calibration
data and no trace may hold.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import write_text
from ptl_fast.data.file_formats import file_rows
from ptl_fast.evaluation.chat import CHAT_TASKS, ChatTask, Row, as_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Exchange = dict[str, str]
"""{question: what the user says, answer: what the model says}"""


@dataclass(frozen=True)
class Rows:
    """A stretch of a file's rows."""

    file: str
    """Below the folder of the data."""
    first: int = 0
    end: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """One benchmark, with disjoint stretches for each purpose."""

    task: ChatTask
    test: Rows
    development: Rows
    training: Rows
    written: Callable[[Mapping[str, Any]], str]
    """A training row's answer as its authors wrote it, in the form of a chat's answer."""


# GSM8K has no validation file: the end of its training file takes that place
PROBLEM_SETS = {
    "gsm8k": ProblemSet(
        task=CHAT_TASKS["ptl_gsm8k_chat"],
        test=Rows("gsm8k/test.jsonl"),
        development=Rows("gsm8k/train.jsonl", 7000),
        training=Rows("gsm8k/train.jsonl", 0, 7000),
        written=lambda row: row["answer"],
    ),
    "mbpp": ProblemSet(
        task=CHAT_TASKS["ptl_mbpp_chat"],
        test=Rows("mbpp/test.jsonl"),
        development=Rows("mbpp/validation.jsonl"),
        training=Rows("mbpp/train.jsonl"),
        # their files have Windows line ends
        written=lambda row: f"```python\n{row['code'].strip()}\n```".replace("\r\n", "\n"),
    ),
}


@dataclass(frozen=True)
class Problems:
    """The problems of one benchmark that every cell answers."""

    task: ChatTask
    rows: Sequence[Row]

    @property
    def questions(self) -> list[str]:
        """What the user says, problem by problem."""
        return [self.task.question(row) for row in self.rows]

    def prompts(self, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
        """Token ids of each problem in the chat template."""
        return as_prompts(tokenizer, self.questions)


def load_problems(data: Path, part: str, count: int | None) -> dict[str, Problems]:
    """The first ``count`` problems of each benchmark, or as many as there are; None for all.

    Args:
        data: folder with gsm8k/ and mbpp/.
        part: test, development or training.

    Raises:
        ValueError: a file is missing, or has no such rows.
    """
    found = {}
    for name, each in PROBLEM_SETS.items():
        where: Rows = getattr(each, part)
        rows = each.task.load(_existing(data, where.file))[where.first : where.end][:count]
        if not rows:
            raise ValueError(f"{data / where.file} has no rows from {where.first} on")
        found[name] = Problems(each.task, rows)
    return found


def written_exchanges(data: Path, name: str) -> list[Exchange]:
    """A benchmark's training problems with the answers that their authors wrote."""
    each = PROBLEM_SETS[name]
    file = _existing(data, each.training.file)
    # the raw rows beside those of the task, which leave the worked answer out
    raw = [row for _, row in file_rows(Path(file))]
    rows = each.task.load(file)
    pairs = list(zip(rows, raw, strict=True))[each.training.first : each.training.end]
    return [
        {"question": each.task.question(row), "answer": each.written(given)} for row, given in pairs
    ]


def read_traces(file: Path, questions: Sequence[str]) -> list[Exchange]:
    """The model's own answers, from rows {messages: [user, assistant]}, or {problem, answer} with
    the problem's place among ``questions``; answers that were cut off (``finished`` is false) are
    left out, since they would be read as ending there.

    Raises:
        ValueError: a row has another form, or none is left.
    """
    found = []
    for number, (_, row) in enumerate(file_rows(file), start=1):
        try:
            if "problem" in row:
                question, answer = questions[row["problem"]], row["answer"]
            else:
                question, answer = (message["content"] for message in row["messages"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{file}: row {number} is neither {{messages: [user, assistant]}} nor {{problem,"
                " answer}} of a training problem"
            ) from error
        if row.get("finished", True):
            found.append({"question": question, "answer": answer})
    if not found:
        raise ValueError(f"{file} has no finished answer")
    return found


def write_exchanges(file: Path, exchanges: Iterable[Exchange], unseen: Iterable[Problems]) -> None:
    """Write calibration data as rows {question, answer}.

    Raises:
        ValueError: it holds a problem on which models are measured.
    """
    exchanges = list(exchanges)
    measured = {question for problems in unseen for question in problems.questions}
    common = measured & {each["question"] for each in exchanges}
    if common:
        raise ValueError(
            f"{file.name}: {len(common)} of the problems are those that models are measured on,"
            f" such as {min(common)[:60]!r}; leave them out"
        )
    write_text(file, "".join(json.dumps(each) + "\n" for each in exchanges))


def _existing(data: Path, file: str) -> str:
    if not (data / file).is_file():
        raise ValueError(f"no file {data / file}; --data names the folder with gsm8k/ and mbpp/")
    return str(data / file)

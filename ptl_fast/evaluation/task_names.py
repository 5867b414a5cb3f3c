"""The entries of --eval-tasks: their form, and which tasks and files they name.

Nothing here imports torch, so that a misspelt name is told at once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptl_fast.config.checking import nearest_file
from ptl_fast.data import first_rows, readers
from ptl_fast.data.documents import Form
from ptl_fast.data.file_formats import FILE_TYPES, file_type
from ptl_fast.evaluation.chat import CHAT_TASKS
from ptl_fast.evaluation.stock_tasks import nearest_task, stock_names

TASKS_FOLDER = Path(__file__).parent / "lm_eval_tasks"
NLL = "nll"
# Tasks that execute what the model writes (in the sandbox).
CODE_TASKS = ("ptl_mbpp", *(name for name, each in CHAT_TASKS.items() if each.runs_code))
# {task: the columns that its rows have, each under one of some names}; lm_eval_tasks/ and chat.py
# read them.
GSM8K, MATH = (("question",), ("answer",)), (("problem",), ("answer", "solution"))
MBPP = (("text", "prompt"), ("test_list",))
COLUMNS = {
    **dict.fromkeys(("ptl_gsm8k", "ptl_gsm8k_chat"), GSM8K),
    **dict.fromkeys(("demo_arithmetic", "demo_arithmetic_validation"), GSM8K),
    **dict.fromkeys(("ptl_minerva_math", "ptl_math500"), MATH),
    **dict.fromkeys(("ptl_mbpp", "ptl_mbpp_chat"), MBPP),
}
# A data set on the Hugging Face hub, OWNER/NAME or OWNER/NAME:SPLIT.
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
ENTRY = re.compile(r"(?:(?P<label>[\w.-]+):)?(?P<task>[\w.-]+)(?:=(?P<file>.+))?")


@dataclass(frozen=True)
class EvalTask:
    """One entry of --eval-tasks: [LABEL:]TASK[=FILE]."""

    label: str
    """Name in results; the task's name by default."""
    task: str
    """``nll``, a task that this package ships, or one of lm-eval's."""
    file: str | None
    """A local file or, for this package's tasks, a hub data set; None for the standard data."""

    @classmethod
    def parse(cls, entry: str) -> "EvalTask":
        """Parse one entry; ValueError if it has another form."""
        match = ENTRY.fullmatch(entry.strip())
        if match is None:
            raise ValueError(
                f"--eval-tasks entry {entry!r} is not of the form [LABEL:]TASK[=FILE], such as nll"
                " or gsm8k_cot=test.jsonl"
            )
        return cls(match["label"] or match["task"], match["task"], match["file"])


def check_names(entries: Sequence[str]) -> list[EvalTask]:
    """Parse the entries of --eval-tasks, and refuse at once a task that cannot exist.

    lm-eval's index is not built, which would take many seconds.

    Raises:
        ValueError: an entry is malformed, or names an unknown task; names the nearest one.
    """
    tasks = [EvalTask.parse(entry) for entry in entries]
    for task in tasks:
        if task.task not in (NLL, *shipped_tasks()) and task.task not in stock_names():
            raise unknown_task(task.task)
    return tasks


def check(entries: Sequence[str], allow_code_execution: bool) -> list[EvalTask]:
    """Parse the entries, and check what needs no index of lm-eval's: names, files, permission.

    Raises:
        ValueError: as ``tasks.parse_tasks`` does.
    """
    tasks = check_names(entries)
    for task in tasks:
        if task.file is not None and task.task != NLL:
            _find_file(task)
        if task.task in CODE_TASKS and not allow_code_execution:
            raise ValueError(
                f"evaluation task {task.label} runs the code that the model writes, in a sandbox"
                " (ptl_fast/evaluation/sandbox.py says what it"
                " does not protect from); allow it with --allow-code-execution"
            )
    labels = [task.label for task in tasks]
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"two evaluation tasks have the same label ({', '.join(labels)}); name them:"
            " LABEL:TASK=FILE"
        )
    return tasks


def check_file(task: EvalTask, form: Form) -> None:
    """Look at the first row of a task's own file.

    Args:
        form: columns of --data, which those of ``nll`` are too.

    Raises:
        ValueError: it is missing or malformed, or the row lacks a column that the task needs.
    """
    assert task.file is not None
    if task.task == NLL:
        first_rows.check(task.file, form)
        return
    _find_file(task)
    try:
        first_rows.check_local(task.file, lambda row, where: _check_columns(task, row, where))
    except ValueError as error:
        raise ValueError(f"evaluation task {task.label}: {error}") from error


def _check_columns(task: EvalTask, row: dict, where: str) -> None:
    for choices in COLUMNS.get(task.task, ()):
        if not any(name in row for name in choices):
            raise ValueError(
                f"{where} has the columns {', '.join(map(str, row)) or '(none)'}; expected"
                f" {' or '.join(choices)}"
            )


def unknown_task(name: str) -> ValueError:
    shipped = [NLL, *shipped_tasks()]
    return ValueError(
        f"unknown evaluation task {name}; choose {', '.join(shipped)}, or a task of lm-eval (of"
        f" its groups, name the tasks that you want){nearest_task(name, shipped)}"
    )


def shipped_tasks() -> list[str]:
    """Names of the tasks that this package ships, sorted: lm-eval's and chat tasks."""
    return sorted([*CHAT_TASKS, *(file.stem for file in TASKS_FOLDER.glob("*.yaml"))])


def _find_file(task: EvalTask) -> None:
    """Raise ValueError unless the task's file exists or may name a hub data set."""
    assert task.file is not None
    # data/test.jsonl looks like a hub name too
    is_data = file_type(Path(task.file)) in FILE_TYPES
    may_be_on_hub = task.task in shipped_tasks() and HUB_NAME.fullmatch(task.file) and not is_data
    if not readers.is_local(task.file) and not may_be_on_hub:
        hint = nearest_file(Path(task.file))
        raise ValueError(f"evaluation task {task.label}: no file {task.file}{hint}")

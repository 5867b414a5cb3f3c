"""Evaluation: chat and lm-eval tasks on the model in memory, and the NLL of held-out answers.

Tasks come from --eval-tasks. They are parsed and loaded before a run begins, so that a wrong name
or an unreadable file does not end it hours later.
"""

import codecs
import functools
import json
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ptl_fast.base import distributed
from ptl_fast.base.console import reason
from ptl_fast.base.errors import Diverged
from ptl_fast.data import readers
from ptl_fast.evaluation import chat, kept_answers, task_names
from ptl_fast.evaluation.chat import CHAT_TASKS, LoadedChat
from ptl_fast.evaluation.kept_answers import KeptAnswer, Measured
from ptl_fast.evaluation.nll import NLL_MAX_LENGTH, answer_nll
from ptl_fast.evaluation.task_names import (
    CODE_TASKS,
    NLL,
    TASKS_FOLDER,
    EvalTask,
    shipped_tasks,
    unknown_task,
)

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.config.evaluation import EvaluationSettings
    from ptl_fast.data.documents import Document

    LoadedTask: TypeAlias = LoadedChat | TaskDict
    """A chat task or a task of lm-eval, with its data."""

FEWSHOT_SEED = 1234


def parse_tasks(entries: Sequence[str], allow_code_execution: bool = False) -> list[EvalTask]:
    """Parse and check the entries of --eval-tasks; loads no data.

    Raises:
        ValueError: an entry is malformed, names an unknown task or a missing file, runs generated
            code without ``allow_code_execution``, or two have the same label.
    """
    tasks = task_names.check(entries, allow_code_execution)
    # lm-eval's own tasks last: their index takes seconds to build
    for task in tasks:
        if (
            task.task not in (NLL, *shipped_tasks())
            and task.task not in _task_manager(True).all_subtasks
        ):
            raise unknown_task(task.task)
    return tasks


def load_task(
    task: EvalTask, tokenizer: "PreTrainedTokenizerBase", settings: "EvaluationSettings"
) -> "LoadedTask":
    """Load any task but ``nll``, with its data.

    Raises:
        ValueError: the data cannot be used, or the tokenizer cannot ask it.
    """
    if task.task not in CHAT_TASKS:
        return load_lm_eval_task(task)
    try:
        return chat.load(CHAT_TASKS[task.task], task.file, tokenizer, settings)
    except Exception as error:  # data sets and templates raise many types
        raise _unusable(task, error) from error


def _unusable(task: EvalTask, error: Exception) -> ValueError:
    """The error that says which data cannot be used, why, and what to do."""
    where = f"the data in {task.file}" if task.file else "its data"
    is_local = task.file is not None and readers.is_local(task.file)
    fix = "" if is_local else f"; give a local file: {task.task}=FILE.jsonl"
    return ValueError(
        f"evaluation task {task.label}: {where} cannot be used ({type(error).__name__}:"
        f" {reason(error)}){fix}"
    )


def load_lm_eval_task(task: EvalTask) -> "TaskDict":
    """Load one lm-eval task with its data, and make its first prompt to check the columns.

    Raises:
        ValueError: the data cannot be read or lacks the task's columns, or the task would execute
            generated code outside our sandbox.
    """
    manager = _task_manager(task.task not in shipped_tasks())
    try:
        with tempfile.TemporaryDirectory() as folder:
            loaded = manager.load(
                [task.task if task.file is None else _with_local_file(manager, task, Path(folder))]
            )
        for loaded_task in loaded["tasks"].values():
            loaded_task.set_config(
                key="num_fewshot", value=loaded_task.get_config("num_fewshot") or 0
            )
            loaded_task.set_fewshot_seed(seed=FEWSHOT_SEED)
            # a missing column shows only when a prompt is made
            first = next(iter(loaded_task.eval_docs))
            loaded_task.doc_to_text(first)
            loaded_task.doc_to_target(first)
    except Exception as error:  # lm-eval, datasets and jinja raise many types
        raise _unusable(task, error) from error
    if task.task not in CODE_TASKS and any(
        getattr(loaded_task, "UNSAFE_CODE", False) for loaded_task in loaded["tasks"].values()
    ):
        raise ValueError(
            f"evaluation task {task.label} runs generated code without limits; use"
            f" {' or '.join(CODE_TASKS)}"
        )
    return loaded


def metrics(loaded: "LoadedTask | None") -> dict[str, bool]:
    """Return {metric: whether higher is better} of those that a quality gate may look at.

    Args:
        loaded: a loaded task, or None for the task ``nll``.
    """
    if loaded is None:
        return {NLL: False}
    if isinstance(loaded, LoadedChat):
        return loaded.metrics
    found = {}
    for task in loaded["tasks"].values():
        # lm-eval computes each metric once per answer filter; without filters it names it "none"
        filters = [each["name"] for each in task.get_config("filter_list") or []] or ["none"]
        for metric, higher_is_better in task.higher_is_better().items():
            found.update({_metric_name(f"{metric},{name}"): higher_is_better for name in filters})
    return found


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[EvalTask],
    nll_documents: "dict[str, list[Document]]",
    loaded: "dict[str, LoadedTask]",
    *,
    batch_size: int,
    limit: int | None,
    description: str,
) -> tuple[dict[str, dict[str, float]], dict[str, list[KeptAnswer]]]:
    """Evaluate the model, and return on every rank {label: {metric: value}} and, of the tasks that
    ask for answers, {label: answers to the first problems}.

    All ranks must call this, with whole models: each takes a share of what is to be answered.

    Args:
        nll_documents: {label: documents} of the tasks that are ``nll``.
        loaded: {label: loaded task} of the others.
        batch_size: documents or prompts in a forward pass.
        limit: largest number of examples of an lm-eval task; None for all.
        description: what progress bars and errors call the model.

    Raises:
        Diverged: a value is NaN or infinite; raised on every rank.
    """
    results: dict[str, dict[str, float]] = {}
    answers: dict[str, list[KeptAnswer]] = {}
    for task in tasks:
        label, named = task.label, f"{description}: {task.label}"
        own = loaded.get(label)
        if own is None:
            documents = nll_documents[label]
            results[label] = answer_nll(
                model, tokenizer, documents, batch_size, NLL_MAX_LENGTH, named, divide=True
            )
            continue
        if isinstance(own, LoadedChat):
            measured = chat.run(model, tokenizer, own, batch_size, named)
        else:
            measured = run_lm_eval(model, tokenizer, own, batch_size, limit, named)
        results[label] = measured.metrics
        if measured.answers:
            answers[label] = measured.answers
    # the seconds differ, and the others of an lm-eval task know nothing of its metrics
    results, answers = distributed.agree((results, answers))
    for label, values in results.items():
        for metric, value in values.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"{description}: {label} {metric} is {value}, the model has diverged; lower"
                    " --learning-rate or prune less in a round (more --rounds)"
                )
    return results, answers


def run_lm_eval(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    loaded: "TaskDict",
    batch_size: int,
    limit: int | None,
    description: str = "",
) -> Measured:
    """Run one loaded lm-eval task; return {metric: value}, accuracies in [0, 1], and answers.

    lm-eval runs on the main rank, whose model has the others answer a share of its requests: all
    must call this, and the others return nothing.
    """
    # here, as importing lm-eval takes seconds
    from lm_eval.evaluator import evaluate

    from ptl_fast.evaluation import lm_eval_model

    (task,) = loaded["tasks"].values()
    generates = task.OUTPUT_TYPE == "generate_until"
    with (
        lm_eval_model.reporting(description),
        lm_eval_model.divided(lm_eval_model.make(model, tokenizer, batch_size)) as answering,
    ):
        if not distributed.is_main():
            return Measured({}, [])
        results = evaluate(
            lm=answering,
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=0,  # no standard errors, which are left out below
            log_samples=generates,
            confirm_run_unsafe_code=True,  # parse_tasks has asked for the permission
        )
    assert results is not None
    (values,) = results["results"].values()
    # metrics are the keys METRIC,FILTER; others describe the task
    found = {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and "_stderr" not in name and "," in name
    }
    answers: list[KeptAnswer] = []
    if generates and found:
        (samples,) = results["samples"].values()
        answers = kept_answers.of_samples(samples, next(iter(found)), task.doc_to_text)
    return Measured({_metric_name(name): value for name, value in found.items()}, answers)


def _metric_name(name: str) -> str:
    """METRIC/FILTER for lm-eval's METRIC,FILTER; just METRIC for its default filter ``none``."""
    return name.removesuffix(",none").replace(",", "/")


def _with_local_file(manager: "TaskManager", task: EvalTask, folder: Path) -> str:
    """Write an lm-eval task file that replaces the task's data by ``task.file``; return its path.

    Our own tasks read the file in their loader; lm-eval's go through datasets' JSON reader, where
    the file serves as the training split too, from which few-shot examples are drawn.
    """
    assert task.file is not None
    data: dict[str, Any]
    if task.task in shipped_tasks():
        data = {"dataset_kwargs": {"source": task.file}}
    else:
        rows = _as_json_lines(task.file, folder)
        files = {"train": rows, "test": rows}
        data = {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
    # lm-eval reads YAML, of which JSON is a subset
    settings = {"include": str(manager.task_index[task.task].yaml_path), "task": task.task, **data}
    file = folder / f"{task.task}.yaml"
    file.write_text(json.dumps(settings))
    return str(file)


def _as_json_lines(source: str, folder: Path) -> str:
    """The path of the data as a file that datasets' JSON reader takes; written if it is another."""
    path = Path(source)
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        with path.open("rb") as stream:
            # pyarrow takes no byte order mark for JSON
            if stream.read(3) != codecs.BOM_UTF8:
                return str(path.resolve())
    written = folder / "rows.jsonl"
    with written.open("w", encoding="utf-8") as stream:
        for _, row in readers.local_rows(source, "test"):
            stream.write(json.dumps(row, default=str) + "\n")
    return str(written)


@functools.cache
def _task_manager(with_stock_tasks: bool) -> "TaskManager":
    """lm-eval's task index: our tasks, and its own ones on request, which takes seconds."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=str(TASKS_FOLDER), include_defaults=with_stock_tasks)

"""Data of the tasks: problems from a local file or the hub, few-shot examples from lm-eval."""

import ast
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml

from ptl_fast.base.console import say
from ptl_fast.data import readers
from ptl_fast.data.columns import EmptyCell


def load_rows(
    source: str | None,
    read: Callable[[dict[str, Any]], dict[str, Any]],
    hub_name: str,
    configs: Sequence[str | None] = (None,),
) -> dict[str, datasets.Dataset]:
    """Return {"test": data set}, a task's only split, with ``read(row)`` for each row.

    Args:
        source: a local file of any type that --data takes, a folder or a hub data set (NAME or
            NAME:SPLIT, split test by default), or None for ``hub_name``.
        read: turns a row into the task's columns; raises ValueError for a row that does not fit.
        hub_name: the benchmark's data set on the hub.
        configs: configs of ``hub_name`` to read, one after the other.

    Raises:
        ValueError: the data is malformed or empty, or a row does not fit (names the row).
    """
    if source is not None and readers.is_local(source):
        rows = list(readers.local_rows(source, "test"))
    else:
        name, _, split = (source or hub_name).partition(":")
        # another data set than the benchmark's need not have its configs
        chosen = configs if name == hub_name else (None,)
        sources = [
            readers.Source(name, name, config=each, split=split or "test") for each in chosen
        ]
        rows = [numbered for each in sources for numbered in readers.dataset_rows(each)]
    found = [_read(read, number, row) for number, row in rows]
    kept = [row for row in found if row is not None]
    if len(kept) < len(rows):
        say(
            f"{source or hub_name}: {len(rows) - len(kept):,} rows with an empty cell were left out"
        )
    if not kept:
        raise ValueError("it has no rows")
    return {"test": datasets.Dataset.from_list(kept)}


def standard_examples(path: str) -> list[dict[str, Any]]:
    """Return the few-shot examples of one of lm-eval's own tasks, from the installed package.

    A .yaml file lists them; a .py file returns a literal from ``list_fewshot_samples``. The .py
    file is parsed, not imported: on import these files need a certain antlr4 version, or the
    network.

    Args:
        path: file below lm_eval/tasks.

    Raises:
        ValueError: the installed lm-eval does not have the examples there.
    """
    # find_spec does not import lm-eval, which takes seconds
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "tasks" / path
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".yaml":
            return yaml.safe_load(text)["fewshot_config"]["samples"]
        # each of the two must be unique, or the unpacking raises the ValueError caught below
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        (listing,) = (node for node in functions if node.name == "list_fewshot_samples")
        (returned,) = (node for node in listing.body if isinstance(node, ast.Return))
        assert returned.value is not None
        return ast.literal_eval(returned.value)
    except (OSError, KeyError, ValueError, SyntaxError, yaml.YAMLError) as error:
        raise ValueError(
            f"the standard examples are not in {file}; pip install lm-eval==0.4.13"
        ) from error


def _read(
    read: Callable[[dict[str, Any]], dict[str, Any]], number: int, row: dict[str, Any]
) -> dict[str, Any] | None:
    """``read(row)``, None for a row that lacks a value; its ValueError gets the row's number."""
    try:
        return read(row)
    except EmptyCell:
        return None
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error

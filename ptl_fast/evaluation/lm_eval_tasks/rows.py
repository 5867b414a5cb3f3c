"""Where the tasks' problems and standard few-shot examples come from: local files or the hub, and
the installed lm-eval.
"""

import ast
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml

from ptl_fast.data import readers


def load_rows(
    source: str | None,
    read: Callable[[dict[str, Any]], dict[str, Any]],
    hub_name: str,
    configs: Sequence[str | None] = (None,),
) -> dict[str, datasets.Dataset]:
    """Return a task's only split, ``test``, with ``read(row)`` of each row.

    ``source`` is a local .jsonl, .json or .parquet file, a hub data set (NAME or NAME:SPLIT, split
    test if none is given), or None for ``hub_name``, of which ``configs`` are read.

    Raises:
        ValueError: the file is malformed or empty, or ``read`` finds that a row does not fit; the
            message names the row.
    """
    if source is not None and Path(source).is_file():
        rows = [row for _, row in readers.file_rows(Path(source))]
    else:
        name, _, split = (source or hub_name).partition(":")
        chosen = configs if name == hub_name else (None,)
        sources = [
            readers.Source(name, name, config=each, split=split or "test") for each in chosen
        ]
        rows = [row for each in sources for _, row in readers.dataset_rows(each)]
    if not rows:
        raise ValueError("it has no rows")
    return {
        "test": datasets.Dataset.from_list(
            [_read(read, number, row) for number, row in enumerate(rows, start=1)]
        )
    }


def standard_examples(path: str) -> list[dict[str, Any]]:
    """Few-shot examples of one of lm-eval's own tasks, read from the installed package.

    A .yaml file lists them; a .py file returns them from ``list_fewshot_samples``. It is parsed,
    not imported: the ones in question want a certain antlr4, or the network, as soon as they are
    imported.

    Raises:
        ValueError: the installed lm-eval has no such examples.
    """
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "tasks" / path
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".yaml":
            return yaml.safe_load(text)["fewshot_config"]["samples"]
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
) -> dict[str, Any]:
    try:
        return read(row)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error

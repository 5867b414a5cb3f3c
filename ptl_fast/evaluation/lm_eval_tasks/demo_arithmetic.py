"""Data of the demo's evaluation tasks: 500 problems of the test part, and of the validation part
for choosing settings.
"""

from typing import Any

import datasets

from ptl_fast.data.columns import first_present
from ptl_fast.demo.problems import Part, generate
from ptl_fast.evaluation.lm_eval_tasks.rows import load_rows

NUM_PROBLEMS, SEED = 500, 1


def load(source: str | None = None, part: Part = "test", **_: Any) -> dict[str, datasets.Dataset]:
    """Return the test problems, or those of the file ``source``, as the task's only split."""
    if source is not None:
        return load_rows(
            source,
            lambda row: {name: first_present(row, name) for name in ("question", "answer")},
            hub_name="",
        )
    return {"test": datasets.Dataset.from_list(generate(NUM_PROBLEMS, SEED, part))}


def load_validation(source: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Return the validation problems, or those of the file ``source``, as the task's only split."""
    return load(source, "validation")


def prompt(problem: dict[str, str]) -> str:
    """What the model reads, as in its training text."""
    return f"Question: {problem['question']}\nAnswer:"


def final_number(problem: dict[str, str]) -> str:
    """What its answer must end with."""
    return problem["answer"].split("####")[-1].strip()

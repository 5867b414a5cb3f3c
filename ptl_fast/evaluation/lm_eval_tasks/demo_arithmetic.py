"""Evaluation tasks of the demo: 500 test problems, and 500 validation problems to tune on."""

from typing import Any

import datasets

from ptl_fast.data.columns import as_text, first_present
from ptl_fast.demo.problems import Part, as_prompt, generate
from ptl_fast.evaluation.lm_eval_tasks.rows import load_rows

__all__ = ["as_prompt", "final_number", "load", "load_validation"]  # what the YAML files name

# Fixed, so that every run evaluates the same problems.
NUM_PROBLEMS, SEED = 500, 1


def load(source: str | None = None, part: Part = "test", **_: Any) -> dict[str, datasets.Dataset]:
    """Return {"test": problems}, of ``part`` or from the local file ``source``."""
    if source is not None:
        return load_rows(
            source,
            lambda row: {
                name: as_text(first_present(row, name), f"its {name}")
                for name in ("question", "answer")
            },
            hub_name="",
        )
    return {"test": datasets.Dataset.from_list(generate(NUM_PROBLEMS, SEED, part))}


def load_validation(source: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Return {"test": problems}, of the validation part or from the local file ``source``."""
    # the split is still called "test", as the task's YAML file includes the test task's
    return load(source, "validation")


def final_number(problem: dict[str, str]) -> str:
    """The gold answer: the number after ####."""
    return problem["answer"].split("####")[-1].strip()

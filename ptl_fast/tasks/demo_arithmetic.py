"""Data of the demo's evaluation tasks: 500 problems of the test part, and of the validation part for choosing settings."""

from typing import Any

import datasets

from ptl_fast.demo.problems import generate

NUM_PROBLEMS, SEED = 500, 1


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """Return the test problems as the task's only split."""
    return {"test": datasets.Dataset.from_list(generate(NUM_PROBLEMS, SEED, "test"))}


def load_validation(**_: Any) -> dict[str, datasets.Dataset]:
    """Return the validation problems as the task's only split."""
    return {"test": datasets.Dataset.from_list(generate(NUM_PROBLEMS, SEED, "validation"))}

"""lm-eval's tasks are known by name without importing it."""

import subprocess
import sys

import pytest

from ptl_fast.evaluation.stock_tasks import nearest_task, stock_names

LIGHT = """
import sys
from ptl_fast.evaluation.stock_tasks import stock_names
assert "gsm8k" in stock_names()
assert not {"lm_eval", "torch", "transformers", "datasets"} & set(sys.modules)
"""


def test_reading_the_names_imports_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def test_all_tasks_of_lm_eval_are_among_them() -> None:
    from lm_eval.tasks import TaskManager

    assert not set(TaskManager().all_subtasks) - stock_names()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gsm8k_cto", "; did you mean gsm8k_cot?"),
        ("hellaswg", "; did you mean hellaswag?"),
        ("ptl_gsm8", "; did you mean ptl_gsm8k?"),
        ("jellaswag", "; did you mean hellaswag?"),
        ("qqqqqqqq", ""),
    ],
)
def test_the_nearest_name(name: str, hint: str) -> None:
    assert nearest_task(name, ["nll", "ptl_gsm8k"]) == hint

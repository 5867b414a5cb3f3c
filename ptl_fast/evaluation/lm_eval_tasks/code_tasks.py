"""MBPP (arXiv 2108.07732): write a Python function that passes three assertions, in a sandbox."""

from typing import Any

import datasets

from ptl_fast.data.columns import first_present
from ptl_fast.evaluation import sandbox
from ptl_fast.evaluation.lm_eval_tasks.rows import load_rows, standard_examples


def load_mbpp(source: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load MBPP as rows {text, setup, test_list}; its test split has 500.

    ``source`` (see ``load_rows``) needs the columns text or prompt, and test_list; optional are
    test_setup_code (a string) or test_imports (a list), which become ``setup``.
    """
    return load_rows(source, _row, "google-research-datasets/mbpp", ["full"])


def mbpp_examples() -> list[dict[str, Any]]:
    """The paper's three few-shot examples, tasks 2, 3 and 4: {text, code, test_list}."""
    return standard_examples("mbpp/utils.py")


def prompt(row: dict[str, Any]) -> str:
    """The paper's prompt: the task, and the assertions that the code must pass."""
    tests = "\n".join(row["test_list"])
    task = f"You are an expert Python programmer, and here is your task: {row['text']}"
    return f"{task} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"


def solution(row: dict[str, Any]) -> str:
    """A few-shot example's answer; empty for test rows, which have no reference code."""
    # [DONE] teaches the model to write the string that ends generation
    return f"{row['code']}\n[DONE]" if "code" in row else ""


def judge(row: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """pass@1: 1.0 if the response passes all assertions, else 0.0. Executes the response."""
    tests = "\n".join([row["setup"], *row["test_list"]])
    return {"pass@1": float(sandbox.passes(responses[0], tests))}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """One row in the task's columns; ValueError if its test_list is no list."""
    tests = first_present(row, "test_list")
    if not tests or not isinstance(tests, list):
        raise ValueError("its test_list is no list of assertions")
    # the "full" config has test_setup_code, the "sanitized" one test_imports
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    return {"text": first_present(row, "text", "prompt"), "setup": setup, "test_list": tests}

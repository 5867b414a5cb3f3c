"""GSM8K, Minerva Math and MATH-500: one final answer per problem, compared by math-verify.

Prompts are Python functions and not Jinja templates: lm-eval compiles a template again for every
few-shot example of every prompt, which takes most of a minute for GSM8K.
"""

import re
from typing import Any

import datasets

from ptl_fast.data import answers
from ptl_fast.data.columns import as_text, first_present
from ptl_fast.evaluation.lm_eval_tasks.rows import load_rows, standard_examples

# Configs of the hub data set: the benchmark is all of them together.
NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+")
MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def load_gsm8k(source: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load rows {question, gold} from {question, answer}; the answer must end in "#### N"."""
    return load_rows(source, _gsm8k_row, "openai/gsm8k", ["main"])


def load_minerva(source: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load rows {problem, gold} from {problem, solution}; the hub's seven subjects have 5000."""
    return load_rows(source, _math_row, "EleutherAI/hendrycks_math", MATH_SUBJECTS)


def load_math500(source: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load rows {problem, gold} from {problem, answer} or {problem, solution}; the hub has 500."""
    return load_rows(source, _math_row, "HuggingFaceH4/MATH-500")


def gsm8k_examples() -> list[dict[str, str]]:
    """The eight chain-of-thought examples of Wei et al., arXiv 2201.11903: {question, solution}."""
    examples = standard_examples("gsm8k/gsm8k-cot.yaml")
    return [
        {"question": example["question"], "solution": example["target"]} for example in examples
    ]


def minerva_examples() -> list[dict[str, str]]:
    """The four few-shot examples of Minerva (arXiv 2206.14858): {problem, solution}."""
    return standard_examples("minerva_math/utils.py")


def gsm8k_prompt(row: dict[str, str]) -> str:
    return f"Q: {row['question']}\nA:"


def minerva_prompt(row: dict[str, str]) -> str:
    return f"Problem:\n{row['problem']}\n\nSolution:"


def solution(row: dict[str, str]) -> str:
    """The target text: a few-shot example's worked solution, a test row's final answer."""
    return row.get("solution", row.get("gold", ""))


def judge(row: dict[str, str], responses: list[str]) -> dict[str, float]:
    """exact_match: 1.0 if the response's final answer equals the row's, else 0.0."""
    return {"exact_match": float(answers.is_right(row["gold"], responses[0]))}


def _gsm8k_row(row: dict[str, Any]) -> dict[str, str]:
    answer = as_text(first_present(row, "answer"), "its answer").strip()
    # an unmarked answer would make the whole chain of thought the gold answer; a number is one
    if "####" not in answer and not NUMBER.fullmatch(answer):
        raise ValueError('its answer does not end in "#### N"')
    return {"question": first_present(row, "question"), "gold": answer.split("####")[-1].strip()}


def _math_row(row: dict[str, Any]) -> dict[str, str]:
    """One row as {problem, gold}: gold is the answer column, or the solution's boxed answer."""
    if row.get("answer") is not None:
        gold = as_text(first_present(row, "answer"), "its answer")
    else:
        solution = first_present(row, "solution", "answer")
        # final_answer also accepts text after "answer is"; in MATH's solutions only a box counts
        boxed = answers.final_answer(solution) if "boxed" in solution else None
        if boxed is None:
            raise ValueError("it has no answer column, and its solution has no \\boxed{...}")
        gold = boxed
    return {"problem": first_present(row, "problem"), "gold": gold}

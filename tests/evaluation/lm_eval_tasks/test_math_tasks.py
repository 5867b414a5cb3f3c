"""GSM8K, Minerva Math and MATH-500: gold answers score 1, wrong ones 0, from local files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.eval_tasks import MATH_PROBLEMS, read, shared, stock_task


def test_gsm8k_gold_scores_1_and_wrong_0(score: Callable) -> None:
    file = shared("gsm8k/test.jsonl")
    gold = {row["question"]: row["answer"] for row in read(file)}
    scores, model = score(f"ptl_gsm8k={file}", lambda row: f" {gold[row['question']]}")
    assert scores == {"exact_match": 1.0}
    assert len(model.prompts) == 1319
    number = {question: answer.split("####")[1].strip() for question, answer in gold.items()}
    for say in (
        "So it is {}. The answer is {}.",
        "Thus $\\boxed{{{}}}$ of them.",
        "In all that makes {} of them.",
    ):
        assert score(
            f"ptl_gsm8k={file}",
            lambda row, say=say: say.format(*[number[row["question"]]] * 2),
            200,
        )[0] == {"exact_match": 1.0}, say
    wrong = {question: f"{int(value.replace(',', '')) + 1}" for question, value in number.items()}
    # the right number stands in the reasoning, but is not the answer
    say_wrong = "So {} it is not. The answer is {}."
    scores, _ = score(
        f"ptl_gsm8k={file}",
        lambda row: say_wrong.format(number[row["question"]], wrong[row["question"]]),
    )
    assert scores == {"exact_match": 0.0}
    assert score(f"ptl_gsm8k={file}", lambda row: "", 20)[0] == {"exact_match": 0.0}


def test_gsm8k_asks_as_lm_evals_own_task_does(score: Callable, tmp_path: Path) -> None:
    """The 8-shot chain-of-thought prompt of the literature, to the letter."""
    stock, ask = stock_task("gsm8k/gsm8k-cot.yaml")
    row = {"question": "One plus one?", "answer": "1+1=2\n#### 2"}
    shots = [
        f"{ask(example)} {example['target']}" for example in stock["fewshot_config"]["samples"]
    ]
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(row) + "\n")
    scores, model = score(f"ptl_gsm8k={file}", lambda row: "2")
    assert model.prompts == ["\n\n".join([*shots, ask(row)])]
    assert model.prompts[0].count("Q: ") == stock["num_fewshot"] + 1 == 9
    assert model.settings[0]["until"] == stock["generation_kwargs"]["until"]
    assert scores == {"exact_match": 1.0}


def test_gsm8k_answer_may_be_the_number_alone(score: Callable, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"question": "A thousand and one?", "answer": " 1,001 "}) + "\n")
    for said, right in (("The answer is 1001.", 1.0), ("The answer is 1.", 0.0)):
        scores, _ = score(f"ptl_gsm8k={file}", lambda row, said=said: said)
        assert scores == {"exact_match": right}


@pytest.mark.parametrize("task", ["ptl_minerva_math", "ptl_math500"])
def test_math_gold_scores_1_and_wrong_0(score: Callable, task: str) -> None:
    rows = {row["problem"]: row for row in read(MATH_PROBLEMS)}
    assert len(rows) == 30
    scores, model = score(f"{task}={MATH_PROBLEMS}", lambda row: rows[row["problem"]]["solution"])
    assert scores == {"exact_match": 1.0}
    assert all(
        prompt.count("Problem:\n") == 5 and prompt.endswith("\n\nSolution:")
        for prompt in model.prompts
    )
    scores, _ = score(f"{task}={MATH_PROBLEMS}", lambda row: rows[row["problem"]]["wrong"], 10)
    assert scores == {"exact_match": 0.0}


def test_an_answer_column_comes_before_the_solution(score: Callable, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    row = {"problem": "?", "solution": "First $\\boxed{1}$, then two.", "answer": "\\frac{1}{2}"}
    file.write_text(json.dumps(row) + "\n")
    assert score(f"ptl_math500={file}", lambda row: "$\\boxed{0.5}$")[0] == {"exact_match": 1.0}
    assert score(f"ptl_math500={file}", lambda row: "$\\boxed{1}$")[0] == {"exact_match": 0.0}

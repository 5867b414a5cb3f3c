"""The bundled problems as an evaluation task."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.demo.problems import generate
from ptl_fast.evaluation import tasks


def test_bundled_model_solves_held_out_problems(
    demo_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = tasks.EvalTask.parse("demo_arithmetic")
    result = tasks.run_lm_eval(demo_model, tokenizer, tasks.load_lm_eval_task(task), 250, None)
    assert result.metrics == {"exact_match/final-number": pytest.approx(1.0, abs=0.1)}
    right = sum(each["right"] for each in result.answers) / len(result.answers)
    assert right == result.metrics["exact_match/final-number"]
    first = result.answers[0]
    assert first["question"].startswith("Question: ")
    assert first["expected"] in first["answer"]


def test_local_file_replaces_the_data_of_a_task_that_makes_its_own(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in generate(7, 5, "test")))
    (task,) = tasks.load_lm_eval_task(tasks.EvalTask.parse(f"mine:demo_arithmetic={file}"))[
        "tasks"
    ].values()
    assert [document["question"] for document in task.eval_docs] == [
        each["question"] for each in generate(7, 5, "test")
    ]

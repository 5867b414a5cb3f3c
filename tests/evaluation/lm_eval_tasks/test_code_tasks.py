"""MBPP: right programs pass, wrong ones do not, and the prompt is that of the literature."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from jinja2 import Template

from ptl_fast.evaluation.lm_eval_tasks import rows as rows_module
from support.eval_tasks import Row, read, shared, stock_task


def test_mbpp_gold_scores_1_and_wrong_0(score: Callable) -> None:
    """100 of the 500 problems, for speed; PTL_ALL_MBPP=1 runs them all."""
    file = shared("mbpp/test.jsonl")
    gold = {row["text"]: row["code"] for row in read(file)}
    limit = None if os.environ.get("PTL_ALL_MBPP") else 100
    scores, model = score(f"ptl_mbpp={file}", lambda row: gold[row["text"]], limit)
    assert scores.keys() == {"pass@1"}
    assert scores["pass@1"] >= 0.99
    others = dict(zip(gold, [*list(gold)[1:], next(iter(gold))], strict=True))
    wrong = (
        lambda row: gold[others[row["text"]]],
        lambda row: "import sys; sys.exit(0)",
        lambda row: "",
    )
    assert [score(f"ptl_mbpp={file}", say, 20)[0]["pass@1"] for say in wrong] == [0.0, 0.0, 0.0]
    prompts = [row for row in read(shared("mbpp/prompt.jsonl")) if row["task_id"] in (2, 3, 4)]
    assert all(
        row["text"] in model.prompts[0] and row["code"] in model.prompts[0] for row in prompts
    )
    assert model.prompts[0].count("[BEGIN]\n") == 4
    assert model.prompts[0].count("[DONE]") == 3


def test_mbpp_asks_as_lm_evals_own_task_does(score: Callable, tmp_path: Path) -> None:
    """Its yaml's templates; the task itself cannot be loaded here, for it downloads its metric."""
    stock, ask = stock_task("mbpp/mbpp.yaml")
    row = {
        "text": "Add one.",
        "test_list": ["assert f(1) == 2", "assert f(2) == 3", "assert f(0) == 1"],
    }
    answer = Template(stock["doc_to_target"])
    examples = [
        {**example, "is_fewshot": True}
        for example in rows_module.standard_examples("mbpp/utils.py")
    ]
    shots = [ask(example) + answer.render(example) for example in examples[: stock["num_fewshot"]]]
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(row) + "\n")
    scores, model = score(f"ptl_mbpp={file}", lambda row: "def f(x):\n    return x + 1\n")
    assert model.prompts == ["\n\n".join([*shots, ask(row)])]
    assert model.settings[0]["until"] == stock["generation_kwargs"]["until"]
    assert scores == {"pass@1": 1.0}


def test_mbpp_runs_setup_code_and_reads_the_sanitized_columns(
    score: Callable, tmp_path: Path
) -> None:
    file = tmp_path / "test.jsonl"
    rows: list[Row] = [
        {
            "prompt": "Floor.",
            "test_list": ["assert f(1.5) == math.floor(1.5)"],
            "test_imports": ["import math"],
        },
        {"prompt": "Same.", "test_list": ["assert f(one) == 1"], "test_imports": ["one = 1"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score(f"ptl_mbpp={file}", lambda row: "def f(x):\n    return int(x)")[0] == {
        "pass@1": 1.0
    }

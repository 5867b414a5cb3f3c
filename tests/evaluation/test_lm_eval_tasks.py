"""The shipped benchmarks: gold answers score 1, wrong ones 0, from local files with no network, by
lm-eval's own loop.
"""

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval.tasks
import pytest
from jinja2 import Template
from lm_eval.api.model import LM
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptl_fast.data import answers
from ptl_fast.evaluation import tasks
from ptl_fast.evaluation.lm_eval_tasks import rows as rows_module
from support.models import DEMO_MODEL

SHARED = Path(os.environ.get("PTL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
MATH_PROBLEMS = Path(__file__).parent / "math_problems.jsonl"
Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(
            f"no {name} in {SHARED}; PTL_SHARED_DATA names the folder with gsm8k/ and mbpp/"
        )
    return SHARED / name


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the network was asked for: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def stock_task(path: str) -> tuple[dict[str, Any], Callable[[Row], str]]:
    """One of lm-eval's own tasks: its settings, and its prompt without examples."""
    stock = load_yaml(Path(lm_eval.tasks.__file__).parent / path, resolve_func=False)
    return stock, Template(stock["doc_to_text"], keep_trailing_newline=True).render


class Scripted(LM):
    """A model that says what a function of the problem's row says."""

    def __init__(self, say: Callable[[Row], str]) -> None:
        super().__init__()
        self.say = say
        self.prompts: list[str] = []
        self.settings: list[dict] = []

    def generate_until(self, requests: list) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        self.settings += [request.args[1] for request in requests]
        return [self.say(request.doc) for request in requests]

    def loglikelihood(self, requests: list) -> list:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list) -> list:
        raise NotImplementedError


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, float], Scripted]]:
    """Evaluate a scripted model: (entry, what it says) -> (scores, the model)."""

    def run(
        entry: str, say: Callable[[Row], str], limit: int | None = None
    ) -> tuple[dict[str, float], Scripted]:
        model = Scripted(say)
        monkeypatch.setattr("lm_eval.models.huggingface.HFLM", lambda **_: model)
        (task,) = tasks.parse_tasks([entry], allow_code_execution=True)
        tokenizer: Any = SimpleNamespace()
        return tasks.run_lm_eval(None, tokenizer, tasks.load_lm_eval_task(task), 1, limit), model  # type: ignore[arg-type]

    return run


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


@pytest.mark.parametrize(
    "say",
    [
        "Final Answer: The final answer is ${}$. I hope it is correct.",
        "Therefore $\\boxed{{{}}}$.",
        "#### {}",
    ],
)
def test_equal_answers_are_right_however_written_and_others_wrong(say: str) -> None:
    for row in read(MATH_PROBLEMS):
        gold = answers.final_answer(row["solution"])
        assert gold is not None
        assert answers.is_right(gold, say.format(row["same"])), (gold, row["same"])
        assert not answers.is_right(gold, say.format(row["wrong"])), (gold, row["wrong"])


def test_an_answer_column_comes_before_the_solution(score: Callable, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    row = {"problem": "?", "solution": "First $\\boxed{1}$, then two.", "answer": "\\frac{1}{2}"}
    file.write_text(json.dumps(row) + "\n")
    assert score(f"ptl_math500={file}", lambda row: "$\\boxed{0.5}$")[0] == {"exact_match": 1.0}
    assert score(f"ptl_math500={file}", lambda row: "$\\boxed{1}$")[0] == {"exact_match": 0.0}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 8.", "8"),
        ("The answer is 3.5. I am sure.", "3.5"),
        ("the answer is: $1,200", "1,200"),
        ("#### 5", "5"),
        ("The answer is 4.\nNo: the answer is 5.", "5"),
        ("$\\boxed{\\frac{1}{2}}$, so the answer is one half.", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("$\\boxed 7$.", "7"),
        ("\\fbox{3}", "3"),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("Final Answer: The final answer is $\\sqrt{2}$. I hope it is correct.", "\\sqrt{2}"),
        ("Eight.", None),
        ("", None),
    ],
)
def test_final_answers(response: str, answer: str | None) -> None:
    assert answers.final_answer(response) == answer


def test_an_answer_that_no_one_can_compute_is_wrong_and_the_next_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "CPU_SECONDS", 2)
    judge = answers._Judge()
    tower = "9" + "^{9" * 4 + "}" * 4
    assert not judge.ask(["5", tower, ""])
    assert judge.ask(["5", "5", ""])


def test_answers_are_judged_from_any_thread() -> None:
    judged: list[bool] = []
    thread = threading.Thread(
        target=lambda: judged.append(answers.is_right("\\frac12", "\\boxed{0.5}"))
    )
    thread.start()
    thread.join()
    assert judged == [True]


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


def test_generated_code_needs_permission() -> None:
    with pytest.raises(
        ValueError, match=r"ptl_mbpp runs the code that the model writes.*--allow-code-execution"
    ):
        tasks.parse_tasks(["ptl_mbpp"])


def test_other_tasks_that_run_code_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """lm-eval marks them; they know no limits."""
    monkeypatch.setattr(tasks, "CODE_TASKS", ())
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"text": "?", "test_list": ["assert f()"]}) + "\n")
    with pytest.raises(ValueError, match="runs generated code without limits"):
        tasks.load_lm_eval_task(tasks.EvalTask("mbpp", "ptl_mbpp", str(file)))


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        (
            "ptl_gsm8k=test.jsonl",
            '{"q": "?", "answer": "1 #### 1"}',
            r"row 1: it has the columns q, answer; expected question",
        ),
        (
            "ptl_gsm8k=test.jsonl",
            '{"question": "?", "answer": "1"}',
            r'row 1: its answer does not end in "#### N"',
        ),
        ("ptl_gsm8k=test.jsonl", '{"question": ', r"line 1 is not valid JSON"),
        ("ptl_gsm8k=test.jsonl", "", r"it has no rows"),
        (
            "ptl_minerva_math=test.jsonl",
            '{"problem": "?", "solution": "one"}',
            r"row 1: .*no answer column, and.*no \\boxed",
        ),
        (
            "ptl_mbpp=test.jsonl",
            '{"text": "?", "test_list": []}',
            r"row 1: its test_list is no list of assertions",
        ),
        ("ptl_gsm8k=nowhere.jsonl", "", r"no file nowhere.jsonl"),
        ("gsm8k_cot=owner/name", "", r"no file owner/name"),
        (
            "demo_arithmetic=test.jsonl",
            '{"q": "?"}',
            r"row 1: it has the columns q; expected question",
        ),
    ],
)
def test_unfit_data_is_named(
    entry: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test.jsonl").write_text(content and content + "\n")
    with pytest.raises(ValueError, match=message):
        tasks.load_lm_eval_task(*tasks.parse_tasks([entry], allow_code_execution=True))


@pytest.mark.parametrize(
    ("entry", "asked"),
    [
        ("ptl_gsm8k", [("openai/gsm8k", "main", "test")]),
        ("ptl_gsm8k=openai/gsm8k:train", [("openai/gsm8k", "main", "train")]),
        ("ptl_gsm8k=someone/copy", [("someone/copy", None, "test")]),
        ("ptl_mbpp", [("google-research-datasets/mbpp", "full", "test")]),
        ("ptl_math500", [("HuggingFaceH4/MATH-500", None, "test")]),
        ("ptl_minerva_math", 7),
    ],
)
def test_hub_names(entry: str, asked: list | int, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    seen = []
    row = {
        "question": "?",
        "answer": "#### 1",
        "problem": "?",
        "solution": "\\boxed{1}",
        "text": "?",
        "test_list": ["assert 1"],
    }

    def load(path: str, name: str | None = None, *, split: str, **_: object) -> datasets.Dataset:
        seen.append((path, name, split))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load)
    loaded = tasks.load_lm_eval_task(*tasks.parse_tasks([entry], allow_code_execution=True))
    (task,) = loaded["tasks"].values()
    if isinstance(asked, int):
        assert len(set(seen)) == len(task.eval_docs) == asked
    else:
        assert seen == asked


def test_a_hub_that_cannot_be_reached_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        ValueError, match=r"Couldn't reach.*give a local file: ptl_gsm8k=FILE.jsonl"
    ):
        tasks.load_lm_eval_task(*tasks.parse_tasks(["ptl_gsm8k"]))


def test_standard_examples_come_from_lm_eval() -> None:
    assert [
        len(rows_module.standard_examples(f"{path}"))
        for path in ("gsm8k/gsm8k-cot.yaml", "minerva_math/utils.py")
    ] == [8, 4]
    with pytest.raises(
        ValueError, match=r"standard examples are not in .*nothing.yaml; pip install lm-eval=="
    ):
        rows_module.standard_examples("gsm8k/nothing.yaml")
    with pytest.raises(ValueError, match="standard examples are not in"):
        rows_module.standard_examples("__init__.py")


def test_a_real_model_is_judged(tmp_path: Path) -> None:
    """Batched generation with limit, by the model in memory: the demo's model cannot solve these,
    but is asked and scored.
    """
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval(),
        AutoTokenizer.from_pretrained(DEMO_MODEL),
    )
    file = tmp_path / "mbpp.jsonl"
    file.write_text(json.dumps({"text": "Add one.", "test_list": ["assert f(1) == 2"]}) + "\n")
    questions = tmp_path / "gsm8k.jsonl"
    questions.write_text(json.dumps({"question": "One plus one?", "answer": "#### 2"}) + "\n")
    for entry, metric in (
        (f"ptl_gsm8k={questions}", "exact_match"),
        (f"ptl_mbpp={file}", "pass@1"),
    ):
        loaded = tasks.load_lm_eval_task(*tasks.parse_tasks([entry], allow_code_execution=True))
        assert tasks.run_lm_eval(model, tokenizer, loaded, 2, 2) == {metric: 0.0}

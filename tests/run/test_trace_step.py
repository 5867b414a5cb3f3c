"""A run on own traces: what its rounds train on, what is held out, and what it says when traces are
lost.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast import compress
from ptl_fast.data.documents import Document
from ptl_fast.demo.problems import generate
from ptl_fast.recovery import registry
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.run import trace_step
from support.files import write_rows
from support.recovery import with_training
from support.runs import DEMO

WRONG = [{**each, "answer": "So it is\n#### 500"} for each in generate(40, 6, "training")]
RIGHT = generate(260, 4, "training")
SHORT: dict[str, Any] = {
    **DEMO,
    "preset": None,
    "model": "ptl-demo",
    "traces": True,
    "recovery_tokens": 3000,
    "calibration_tokens": 1000,
    "recovery_split": "equal",
    "rounds": 1,
    "width_multiple": 32,
    "keep": 0.75,
}


def noted(monkeypatch: pytest.MonkeyPatch, method: str = "cpt") -> list[RecoveryTask]:
    """The tasks of a recovery that trains nothing."""
    tasks: list[RecoveryTask] = []

    def note(model: PreTrainedModel, task: RecoveryTask) -> RecoveryResult:
        tasks.append(task)
        rewards = {name: [0.5] for name in ("reward", "truncated", "response_tokens")}
        details = {"grpo": {"always_zero": [], "steps": 1, "rollouts": 8, **rewards}}
        return RecoveryResult(num_steps=1, details=details if method == "grpo" else {})

    trained = with_training(method, note)
    monkeypatch.setitem(registry.RECOVERIES, method, trained)
    return tasks


def texts(task: RecoveryTask, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The documents of a round's packed sequences."""
    ids = task.tokens.input_ids[task.tokens.mask].tolist()
    return str(tokenizer.decode(ids)).split(str(tokenizer.eos_token))[:-1]


def stored(folder: Path) -> list[dict[str, Any]]:
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.open()]
    return [json.loads(line) for line in lines]


def test_rounds_train_on_the_models_answers_and_never_on_the_datas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The data is wrong all along, and has some text; held-out documents for nll are the data's."""
    tasks = noted(monkeypatch)
    text = [{"text": f"{number} is a number."} for number in range(10)]
    data = write_rows(tmp_path / "data.jsonl", *WRONG, *text)
    output = tmp_path / "run"
    report = compress(**SHORT, data=data, output=output)
    made = stored(output / "traces")
    asked = [each for each in made if each["question"]]
    assert {each["answer"] for each in asked} == {"So it is\n#### 500"}
    assert all(each["right"] is False for each in asked)
    trained = texts(tasks[0], tokenizer)
    expected = {f"Question: {each['question']}\nAnswer:{each['own']}" for each in asked}
    expected |= {each["own"] for each in made if not each["question"]}
    assert set(trained) == expected
    assert len(trained) == len(expected)
    questions = {each["question"] for each in asked}
    assert len(questions) == len(asked) < len(WRONG), "some are held out"
    # the original is sure of its own answer, and the data's is another one
    assert report["dense"]["eval"]["nll"]["nll"] > 1
    (summary,) = report["traces"]
    assert summary["round"] == 1
    assert (summary["asked"], summary["right"]) == (len(asked), 0)
    assert "## Own traces" in (output / "report.md").read_text()


def test_right_answers_alone_are_kept_and_problems_keep_the_datas_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    tasks = noted(monkeypatch, "grpo")
    data = write_rows(tmp_path / "data.jsonl", *RIGHT[:60], *WRONG)
    report = compress(
        **{**SHORT, "recovery_tokens": 2000},
        data=data,
        traces_keep="right",
        recovery="grpo",
        grpo_prompt_tokens=64,
        grpo_response_tokens=32,
        output=tmp_path / "run",
    )
    (summary,) = report["traces"]
    assert summary["kept"] == summary["right"] < summary["asked"]
    answers = {each["question"]: each["answer"] for each in RIGHT}
    assert len(tasks[0].problems) > 20
    for problem in tasks[0].problems:
        assert problem.answer == answers[problem.question]
    assert tasks[0].trains_on_template is False


def test_too_few_right_answers_are_named(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", *WRONG)
    with pytest.raises(ValueError, match=r"own traces of \S+data.jsonl has 0 training documents"):
        compress(**SHORT, data=data, traces_keep="right", output=tmp_path / "run")


def test_a_round_has_recovered_when_it_predicts_own_answers_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those held out of the traces, which no round trains on."""
    tasks = noted(monkeypatch)
    until = {"recovery_split": "until-recovered", "rounds": 2, "recovery_tokens": 3000}
    data = write_rows(tmp_path / "data.jsonl", *RIGHT, *WRONG)
    checked: list[list[Document]] = []

    def note(context: Any) -> None:
        make(context)
        checked.append(context.inputs.checked_documents)

    make = trace_step.make
    monkeypatch.setattr(trace_step, "make", note)
    compress(**{**SHORT, **until}, data=data, output=tmp_path / "run")
    prompts = {document.prompt for document in checked[0]}
    own = {f"Question: {each['question']}\nAnswer:" for each in stored(tmp_path / "run" / "traces")}
    assert prompts
    assert prompts < own
    assert not prompts & {
        f"Question: {each.question}\nAnswer:" for task in tasks for each in task.problems
    }
    assert tasks[0].options.held_out is not None


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a finished run of two rounds whose second has traces of its own."""
    noted(monkeypatch)
    data = write_rows(tmp_path / "data.jsonl", *RIGHT, *WRONG)
    renewed = {"rounds": 2, "traces_every_round": True, "traces_temperature": 1.5}
    settings = {**SHORT, **renewed, "data": data, "output": tmp_path / "run"}
    compress(**settings)
    return settings


def test_a_renewal_replaces_what_the_smaller_model_says_right(
    finished: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    tasks = noted(monkeypatch)
    compress(**{**finished, "output": tmp_path / "again"})
    first, second = (stored(tmp_path / "again" / name) for name in ("traces", "round-02/traces"))
    right = [each for each in second if each["right"]]
    assert 0 < len(right) < len(second)
    own = {each["question"]: each["own"] for each in first}
    own |= {each["question"]: each["own"] for each in right}
    assert set(texts(tasks[1], tokenizer)) == {
        f"Question: {each['question']}\nAnswer:{own[each['question']]}" for each in second
    }
    asked = {each.question for each in tasks[1].problems}
    assert asked == {each["question"] for each in second}
    assert not asked & {each.question for each in tasks[0].problems}
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert [each["round"] for each in report["traces"]] == [1, 2]
    assert report["traces"][1]["kept"] == len(right)


def test_lost_or_changed_traces_are_named(finished: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in (run / "round-02" / "traces", run / "traces"):
        part = next(folder.glob("*.jsonl"))
        before = part.read_text()
        part.write_text(before.replace('"finished": true', '"finished": true '))
        with pytest.raises(ValueError, match=r"traces holds other traces than this run"):
            compress(**finished)
        part.unlink()
        with pytest.raises(ValueError, match=rf"{part.name} is missing or damaged"):
            compress(**finished)
        part.write_text(before)
    compress(**finished)
    (run / "traces" / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"traces is missing, and its run has gone on from it"):
        compress(**finished)


@pytest.mark.parametrize(
    ("text", "runs_code", "right"),
    [
        ("```python\ndef f(): return 3\n```", True, True),
        ("```python\ndef f(): return 4\n```", True, False),
        ("```python\ndef f(): return 3\n```", False, None),
    ],
)
def test_code_is_judged_by_its_tests_if_it_may_run(
    text: str, runs_code: bool, right: bool | None
) -> None:
    document = Document("Write f.", "#### 3", tests="assert f() == 3")
    assert trace_step.judge(document, text, runs_code=runs_code) is right


def test_answers_are_judged_by_what_they_end_with() -> None:
    judge = trace_step.judge
    assert judge(Document("2+2?", "#### 4"), "It is \\boxed{4.0}.", runs_code=False) is True
    assert judge(Document("2+2?", "#### 4"), "It is \\boxed{5}.", runs_code=False) is False
    assert judge(Document("Why?", "Because."), "It is \\boxed{5}.", runs_code=False) is None

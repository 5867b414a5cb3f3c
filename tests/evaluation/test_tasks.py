"""Evaluation tasks: entries, metrics, and lm-eval's loop with the model in memory."""

import json
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ptl_fast.evaluation import tasks
from ptl_fast.evaluation.tasks import EvalTask
from support.models import DEMO_MODEL, make_model


@pytest.mark.parametrize("name", ["demo_arithmetic", "ptl_gsm8k"])
def test_metrics_are_known_before_they_are_measured(name: str, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(
        "".join(json.dumps({"question": "1 + 1 = ?", "answer": "#### 2"}) + "\n" for _ in range(2))
    )
    loaded = tasks.load_lm_eval_task(
        EvalTask(name, name, str(file) if name != "demo_arithmetic" else None)
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(DEMO_MODEL),
        AutoTokenizer.from_pretrained(DEMO_MODEL),
    )
    assert tasks.metrics(loaded) == dict.fromkeys(
        tasks.run_lm_eval(model, tokenizer, loaded, 2, 2).metrics, True
    )


def test_random_model_solves_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    task = tasks.EvalTask.parse("demo_arithmetic")
    found = tasks.run_lm_eval(make_model("llama"), tokenizer, tasks.load_lm_eval_task(task), 50, 50)
    assert found.metrics == {"exact_match/final-number": 0.0}
    assert [each["right"] for each in found.answers] == [False] * 50


def test_stock_task_reads_a_local_file(
    demo_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """GSM8K, 8-shot chain of thought, with no network. The demo's model cannot do it; what counts
    is that it is asked.
    """
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"question": "One plus one?", "answer": "1+1=2\n#### 2"}) + "\n")
    (task,) = tasks.parse_tasks([f"gsm8k_cot={file}"])
    loaded = tasks.load_lm_eval_task(task)
    before = tokenizer.backend_tokenizer.to_str()
    result = tasks.run_lm_eval(demo_model, tokenizer, loaded, 1, None)
    assert result == tasks.run_lm_eval(demo_model, tokenizer, loaded, 1, None), (
        "a loaded task can be used again"
    )
    assert tokenizer.backend_tokenizer.to_str() == before
    (kept,) = result.answers
    assert "One plus one?" in kept["question"], "and not the examples before it"
    assert len(kept["question"]) < 100
    assert kept["right"] is False
    assert set(result.metrics) == {"exact_match/strict-match", "exact_match/flexible-extract"}


def test_unfit_task_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"prompt": 1}\n')
    (task,) = tasks.parse_tasks([f"gsm8k_cot={file}"])
    with pytest.raises(ValueError, match=r"gsm8k_cot: the data in .*test\.jsonl cannot be used"):
        tasks.load_lm_eval_task(task)


def test_entries_of_eval_tasks() -> None:
    assert tasks.EvalTask.parse("nll") == tasks.EvalTask("nll", "nll", None)
    assert tasks.EvalTask.parse("general:nll=a/b.jsonl") == tasks.EvalTask(
        "general", "nll", "a/b.jsonl"
    )
    with pytest.raises(ValueError, match="same label"):
        tasks.parse_tasks(["nll", "nll=x.jsonl"])
    with pytest.raises(ValueError, match="not of the form"):
        tasks.parse_tasks(["a b"])


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


def test_a_hub_that_cannot_be_reached_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        ValueError, match=r"Couldn't reach.*give a local file: ptl_gsm8k=FILE.jsonl"
    ):
        tasks.load_lm_eval_task(*tasks.parse_tasks(["ptl_gsm8k"]))


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
        assert tasks.run_lm_eval(model, tokenizer, loaded, 2, 2).metrics == {metric: 0.0}

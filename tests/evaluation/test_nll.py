"""Evaluation judges right answers as right, wrong ones as wrong, and NLL equals its definition."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.data import sampling
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation import nll, tasks
from support.models import DEMO_MODEL, make_model


@pytest.fixture(scope="module")
def demo_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()


def test_bundled_model_solves_held_out_problems(
    demo_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = tasks.EvalTask.parse("demo_arithmetic")
    result = tasks.run_lm_eval(demo_model, tokenizer, tasks.load_lm_eval_task(task), 250, None)
    assert result == {"exact_match/final-number": pytest.approx(1.0, abs=0.1)}


def test_random_model_solves_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    task = tasks.EvalTask.parse("demo_arithmetic")
    assert tasks.run_lm_eval(
        make_model("llama"), tokenizer, tasks.load_lm_eval_task(task), 50, 50
    ) == {"exact_match/final-number": 0.0}


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
    assert set(result) == {"exact_match/strict-match", "exact_match/flexible-extract"}


def test_unfit_task_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"prompt": 1}\n')
    (task,) = tasks.parse_tasks([f"gsm8k_cot={file}"])
    with pytest.raises(ValueError, match=r"gsm8k_cot: the data in .*test\.jsonl cannot be used"):
        tasks.load_lm_eval_task(task)


def test_nll_is_that_of_the_answer_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model("llama")
    documents = [sampling.Document(**problem) for problem in generate(7, 3, "training")] + [
        sampling.Document("", "plain 5")
    ]
    total, count = 0.0, 0
    for document in documents:
        ids = torch.tensor([tokenizer(document.text)["input_ids"]])
        num_prompt = len(tokenizer(document.prompt)["input_ids"]) if document.prompt else 1
        with torch.inference_mode():
            log_probabilities = model(ids).logits.log_softmax(-1)[0, num_prompt - 1 : -1]
        total -= log_probabilities.gather(1, ids[0, num_prompt:, None]).sum().item()
        count += ids.shape[1] - num_prompt
    # the space before an answer is a token of its own here, and belongs to the prompt
    result = nll.answer_nll(model, tokenizer, documents, 3, 512)
    assert result["nll"] == pytest.approx(total / count, rel=1e-5)


def test_entries_of_eval_tasks() -> None:
    assert tasks.EvalTask.parse("nll") == tasks.EvalTask("nll", "nll", None)
    assert tasks.EvalTask.parse("general:nll=a/b.jsonl") == tasks.EvalTask(
        "general", "nll", "a/b.jsonl"
    )
    with pytest.raises(ValueError, match="same label"):
        tasks.parse_tasks(["nll", "nll=x.jsonl"])
    with pytest.raises(ValueError, match="not of the form"):
        tasks.parse_tasks(["a b"])


def test_local_file_replaces_the_data_of_a_task_that_makes_its_own(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in generate(7, 5, "test")))
    (task,) = tasks.load_lm_eval_task(tasks.EvalTask.parse(f"mine:demo_arithmetic={file}"))[
        "tasks"
    ].values()
    assert [document["question"] for document in task.eval_docs] == [
        each["question"] for each in generate(7, 5, "test")
    ]

"""Chat tasks: prompts, judging, metrics, and the model in memory."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.methods.reasoning_rehearsal import TEMPLATE
from ptl_fast.config.evaluation import EvaluationSettings
from ptl_fast.data import generation
from ptl_fast.data.generation import Answer
from ptl_fast.evaluation import chat, tasks
from ptl_fast.evaluation.chat import CHAT_TASKS, Judged
from support.chat_templates import with_template
from support.chats import gsm8k_file, mbpp_file

FENCED = (
    "Here it is:\n```python\nimport math\ndef f(x):\n    return x + 1\n```\nUse it:\n```\nf(1)\n```"
)


def load(entry: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> chat.LoadedChat:
    (task,) = tasks.parse_tasks([entry], allow_code_execution=True)
    loaded = tasks.load_task(task, tokenizer, EvaluationSettings(**settings))
    assert isinstance(loaded, chat.LoadedChat)
    return loaded


def test_prompts_are_the_templates(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    chats = with_template(tokenizer, TEMPLATE, adds_tokens=False)
    loaded = load(f"ptl_gsm8k_chat={gsm8k_file(tmp_path / 'a.jsonl', 5)}", chats, eval_limit=3)
    assert len(loaded.prompts) == 3
    asked = chats.decode(loaded.prompts[0])
    assert asked.startswith(f"Question: {loaded.problems[0]['question']}\nPlease reason")
    assert asked.endswith("put your final answer within \\boxed{}.\nAnswer:")
    loaded = load(f"ptl_mbpp_chat={mbpp_file(tmp_path / 'b.jsonl', 1)}", chats, eval_max_tokens=7)
    expected = "Question: Add 0.\nYour code should pass these tests:\n\nassert f(1) == 1\nAnswer:"
    assert chats.decode(loaded.prompts[0]) == expected
    assert loaded.longest == len(loaded.prompts[0]) + 7


def test_without_a_template_the_fix_is_named(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"ptl_gsm8k_chat: .* no chat template.*few-shot tasks"):
        load(f"ptl_gsm8k_chat={gsm8k_file(tmp_path / 'a.jsonl', 1)}", tokenizer)


def test_unfit_data_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = gsm8k_file(tmp_path / "a.jsonl", 1)
    with pytest.raises(ValueError, match=r"ptl_mbpp_chat: the data in .*a\.jsonl cannot be used"):
        load(f"ptl_mbpp_chat={file}", with_template(tokenizer, TEMPLATE, adds_tokens=False))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (FENCED, "import math\ndef f(x):\n    return x + 1\n"),
        ("```\nx = 1\n```\n```python\ndef g(): pass\n```", "def g(): pass\n"),
        ("```py\ny = 2\n```", "y = 2\n"),
        ("```python\ndef f(x):\n    return", "def f(x):\n    return"),
        ("def f(x): return x", "def f(x): return x"),
        ("", ""),
    ],
)
def test_code_is_the_block_that_defines(text: str, code: str) -> None:
    assert chat.code_of(text) == code


def test_answers_are_judged(tokenizer: PreTrainedTokenizerBase) -> None:
    math_task, code_task = CHAT_TASKS["ptl_gsm8k_chat"], CHAT_TASKS["ptl_mbpp_chat"]
    problem = {"question": "?", "gold": "18"}
    assert math_task.is_right(problem, "9 * 2 = 18, so \\boxed{18}.")
    assert not math_task.is_right(problem, "18, so \\boxed{19}.")
    code = {"text": "?", "setup": "one = 1", "test_list": ["assert f(one) == 2"]}
    assert code_task.is_right(code, FENCED)
    assert not code_task.is_right(code, FENCED.replace("+ 1", "+ 2"))
    loop = tokenizer.encode("5 ") * 20
    judged = chat.judge(tokenizer, math_task, {"gold": "5"}, Answer(loop, finished=False))
    assert judged == Judged(right=True, tokens=len(loop), finished=False, repeating=True)


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    for num_samples, num_right, k in itertools.product((1, 4, 5), range(5), (1, 2, 4)):
        if num_right > num_samples or k > num_samples:
            continue
        draws = list(itertools.combinations(range(num_samples), k))
        hits = sum(min(draw) < num_right for draw in draws)
        assert chat.pass_at(k, num_samples, num_right) == pytest.approx(hits / len(draws))


def test_metrics_of_several_answers() -> None:
    right = Judged(right=True, tokens=10, finished=True, repeating=False)
    wrong = Judged(right=False, tokens=40, finished=False, repeating=True)
    found = chat.summary([[right, wrong], [wrong, wrong], [wrong, wrong]], seconds=12.0)
    assert found == pytest.approx(
        {
            "pass@1": 1 / 6,
            "pass@2": 1 / 3,
            "pass@3": 1 / 2,
            "response_tokens": 35,
            "cut_off": 5 / 6,
            "repeating": 5 / 6,
            "seconds_per_answer": 2,
        }
    )
    assert next(iter(found)) == "pass@1"


def test_the_model_in_memory_answers_and_is_judged(
    demo_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bundled model solves its problems where they are put in the words that it knows."""
    bare = chat.ChatTask(
        load=chat.load_gsm8k, question=lambda row: row["question"], is_right=chat.gsm8k_is_right
    )
    monkeypatch.setitem(tasks.CHAT_TASKS, "bare", bare)  # type: ignore[arg-type]
    file, chats = (
        gsm8k_file(tmp_path / "a.jsonl", 6),
        with_template(tokenizer, TEMPLATE, adds_tokens=False),
    )
    loaded = load(f"bare={file}", chats, eval_max_tokens=100)
    assert loaded.temperature == 0
    found, kept = chat.run(demo_model, chats, loaded, 4, "test")
    assert found["pass@1"] > 0.8
    assert found["pass@1"] == sum(each["right"] for each in kept) / 6
    assert [each["question"] for each in kept] == [row["question"] for row in loaded.problems]
    assert all(each["expected"] in each["answer"] for each in kept if each["right"])
    assert found["cut_off"] == 0
    assert 5 < found["response_tokens"] < 100
    assert loaded.metrics == {
        "pass@1": True,
        "response_tokens": False,
        "cut_off": False,
        "repeating": False,
    }
    again, _ = chat.run(demo_model, chats, loaded, 4, "test")
    assert {**again, chat.SECONDS: 0} == {**found, chat.SECONDS: 0}


def test_samples_are_drawn_anew_even_one_by_one(
    demo_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[list[Answer]] = []
    original = generation.answer_batch

    def noted(*arguments: Any) -> list[Answer]:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(generation, "answer_batch", noted)
    chats = with_template(tokenizer, TEMPLATE, adds_tokens=False)
    loaded = load(
        f"ptl_gsm8k_chat={gsm8k_file(tmp_path / 'a.jsonl', 2)}",
        chats,
        eval_max_tokens=8,
        eval_samples=3,
        eval_temperature=5.0,
    )
    found, kept = chat.run(demo_model, chats, loaded, 1, "test")
    # a batch of one problem each, twice for every sample
    first = [tokenizer.decode(batch[0].tokens, skip_special_tokens=True) for batch in made[:2]]
    assert [each["answer"] for each in kept] == first, "of several answers the first are kept"
    assert {name for name in found if name.startswith("pass")} == {"pass@1", "pass@2", "pass@3"}
    assert len({tuple(batch[0].tokens) for batch in made[::2]}) == 3
    assert EvaluationSettings(eval_samples=3).sampling_temperature == 0.6

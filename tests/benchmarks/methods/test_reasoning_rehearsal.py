"""The small world is what the command reads."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.methods.reasoning_problems import load_problems
from ptl_fast.data.generation import Sampling, answer_batch
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation.chat import CHAT_TASKS, as_prompts, judge


def test_the_model_solves_its_problems_as_chats(reasoning_world: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(reasoning_world / "model")
    tokenizer = AutoTokenizer.from_pretrained(reasoning_world / "model")
    problems = generate(6, 5, "test")
    prompts = as_prompts(tokenizer, [each["question"] for each in problems])
    answers = answer_batch(model, tokenizer, prompts, Sampling(max_new_tokens=100))
    right = [
        judge(tokenizer, CHAT_TASKS["ptl_gsm8k_chat"], {"gold": gold}, answer).right
        for gold, answer in zip(
            (each["answer"].split("####")[-1].strip() for each in problems), answers, strict=True
        )
    ]
    assert sum(right) >= 5


def test_no_problem_is_in_two_parts(reasoning_world: Path) -> None:
    parts = [
        {
            text
            for each in load_problems(reasoning_world / "data", part, None).values()
            for text in each.questions
        }
        for part in ("test", "development", "training")
    ]
    assert sum(map(len, parts)) == len(set.union(*parts))

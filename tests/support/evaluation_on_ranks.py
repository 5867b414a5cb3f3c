"""An evaluation that ranks share, as each of them runs it."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.methods.reasoning_rehearsal import TEMPLATE
from ptl_fast.base import distributed
from ptl_fast.config.evaluation import EvaluationSettings
from ptl_fast.data.documents import Document
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation import tasks as eval_tasks
from support.chat_templates import with_template
from support.chats import gsm8k_file
from support.files import write_rows
from support.models import DEMO_MODEL

FOUND = "found-{}.json"
LIMIT = 28


def evaluate_here(folder: Path) -> None:
    """Evaluate the bundled model by a loss, a task of lm-eval that generates and one that chooses,
    and a chat task; write what this rank has found, and how many rows its model has run.
    """
    distributed.join("cpu")
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    rows: list[int] = []
    model.register_forward_hook(lambda _, given, out: rows.append(out.logits.shape[0]))
    tokenizer = with_template(
        AutoTokenizer.from_pretrained(DEMO_MODEL), TEMPLATE, adds_tokens=False
    )
    problems = generate(LIMIT, 3, "test")
    own = folder / str(distributed.rank())
    own.mkdir()
    choices = [
        {
            "question": each["question"],
            "choices": {"text": ["1", "22", "-3"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number % 3],
        }
        for number, each in enumerate(problems)
    ]
    entries = [
        "nll",
        "demo_arithmetic",
        f"arc_easy={write_rows(own / 'choices.jsonl', *choices)}",
        f"ptl_gsm8k_chat={gsm8k_file(own / 'chat.jsonl', 9)}",
    ]
    settings = EvaluationSettings(eval_limit=LIMIT, eval_max_tokens=60)
    tasks = eval_tasks.parse_tasks(entries)
    loaded: dict[str, Any] = {
        each.label: eval_tasks.load_task(each, tokenizer, settings)
        for each in tasks
        if each.task != "nll"
    }
    documents = [Document(each["question"], each["answer"]) for each in problems]
    results, answers = eval_tasks.run_tasks(
        model,
        tokenizer,
        tasks,
        {"nll": documents},
        loaded,
        batch_size=4,
        limit=LIMIT,
        description="test",
    )
    found = {"results": results, "answers": answers, "rows": sum(rows)}
    (folder / FOUND.format(distributed.rank())).write_text(json.dumps(found))

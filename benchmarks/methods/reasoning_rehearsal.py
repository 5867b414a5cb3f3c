"""A small world in which benchmarks.methods.reasoning runs in seconds: the bundled model with a
chat template, and its problems in the files of GSM8K.

    python -m benchmarks.methods.reasoning_rehearsal FOLDER

writes FOLDER/model and FOLDER/data. What is measured there means nothing.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.results import write_text
from benchmarks.methods.reasoning_problems import PROBLEM_SETS
from ptl_fast.demo.problems import generate
from ptl_fast.model import loading

# the form in which the bundled model has learnt its problems
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}Question: {{ message.content }}\n"
    "{% else %}Answer:{{ message.content }}<|endoftext|>{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
NUM_DEVELOPMENT = 4  # problems of GSM8K behind those of training
FIRST_ADDITION = {"train": 0, "validation": 50, "test": 70}


def write_world(folder: Path) -> None:
    """Write the model and the data."""
    write_model(folder / "model")
    write_data(folder / "data")


def write_model(folder: Path) -> Path:
    """The bundled model as a chat model."""
    from ptl_fast.config.model import ModelSettings

    loading.load_model(loading.DEMO, ModelSettings(), "cpu").save_pretrained(folder)
    tokenizer = loading.load_tokenizer(loading.DEMO)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_data(folder: Path) -> Path:
    """gsm8k/ and mbpp/ with the rows that the command reads."""
    for name in PROBLEM_SETS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    few = generate(400, 9, "training")
    num_training = PROBLEM_SETS["gsm8k"].training.end
    assert num_training is not None
    training = [few[index % len(few)] for index in range(num_training)]
    held_back = generate(NUM_DEVELOPMENT, 3, "validation")
    _write(folder / "gsm8k" / "train.jsonl", [*training, *held_back])
    _write(folder / "gsm8k" / "test.jsonl", generate(6, 3, "test"))
    for part, first in FIRST_ADDITION.items():
        _write(folder / "mbpp" / f"{part}.jsonl", map(_addition, range(first, first + 20)))
    return folder


def _addition(number: int) -> dict[str, Any]:
    """A programming problem in the columns of MBPP, line ends included."""
    return {
        "text": f"Add {number}.",
        "code": f"def f(x):\r\n    return x + {number}",
        "test_list": [f"assert f(1) == {1 + number}"],
    }


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write_world(Path(sys.argv[1]))

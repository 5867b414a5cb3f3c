"""Benchmarks as lm-eval has them, the data that the machine may share, and a scripted model."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from jinja2 import Template
from lm_eval.api.model import LM
from lm_eval.tasks._yaml_loader import load_yaml

MATH_PROBLEMS = Path(__file__).with_name("math_problems.jsonl")
# GSM8K and MBPP, where the machine has them.
SHARED = Path(os.environ.get("PTL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(
            f"no {name} in {SHARED}; PTL_SHARED_DATA names the folder with gsm8k/ and mbpp/"
        )
    return SHARED / name


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

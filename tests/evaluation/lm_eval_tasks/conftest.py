"""Benchmarks without a network, and a scripted model that lm-eval's own loop scores."""

import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ptl_fast.evaluation import lm_eval_model, tasks
from support.eval_tasks import Row, Scripted


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the network was asked for: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, float], Scripted]]:
    """Evaluate a scripted model: (entry, what it says) -> (scores, the model)."""

    def run(
        entry: str, say: Callable[[Row], str], limit: int | None = None
    ) -> tuple[dict[str, float], Scripted]:
        model = Scripted(say)
        monkeypatch.setattr(lm_eval_model, "make", lambda *_: model)
        (task,) = tasks.parse_tasks([entry], allow_code_execution=True)
        tokenizer: Any = SimpleNamespace()
        loaded = tasks.load_lm_eval_task(task)
        return tasks.run_lm_eval(None, tokenizer, loaded, 1, limit).metrics, model  # type: ignore[arg-type]

    return run

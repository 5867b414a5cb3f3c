"""A run's context: what the quality gate decides reaches the rounds and their data."""

from types import SimpleNamespace
from typing import Any

import pytest

from ptl_fast.run.context import LoadedModel, RunContext
from support.settings import settings


def context(**values: Any) -> Any:
    """A context whose parts are whatever a test gives."""
    parts = ["config", "device", "original", "folder", "rounds", "data", "inputs", "tasks"]
    parts += ["saved_dtype"]
    return RunContext(**{**dict.fromkeys(parts), **values})


class Noted:
    """Stands for the rounds and for their data, and notes what is asked of it."""

    def __init__(self, groups: list | None) -> None:
        self.groups, self.calls = groups, list[tuple]()

    def follow(self, decision: object) -> list | None:
        self.calls.append(("follow", decision))
        return self.groups

    def stop_before(self, number: int) -> None:
        self.calls.append(("stop before", number))

    def split(self, groups: list) -> None:
        self.calls.append(("split", groups))


@pytest.mark.parametrize(
    ("stops", "groups", "calls"),
    [
        (False, None, []),
        (True, None, [("stop before", 3)]),
        (False, [["half", "half"]], [("split", [["half", "half"]])]),
    ],
)
def test_the_data_follow_the_rounds(stops: bool, groups: list | None, calls: list) -> None:
    rounds, data = Noted(groups), Noted(None)
    decision: Any = SimpleNamespace(round=3, stops=stops)
    context(rounds=rounds, data=data).follow(decision)
    assert rounds.calls == [("follow", decision)]
    assert data.calls == calls


def test_the_final_round_has_recoveries_of_its_own() -> None:
    run = context(config=settings(recovery="cpt", final_recovery="grpo"))
    step: Any = SimpleNamespace(kind="neurons")
    assert run.recoveries(step) == ["cpt"]
    assert run.recoveries(SimpleNamespace(kind="final")) == ["grpo"]
    assert [each.on_text for each in run.all_recoveries()] == [True, False]


def test_the_model_is_that_in_memory() -> None:
    run, model = context(), object()
    with pytest.raises(AssertionError, match="before the first round"):
        run.now  # noqa: B018
    loaded: Any = LoadedModel(model=model, family=None)  # type: ignore[arg-type]
    run.loaded = loaded
    assert run.model is model

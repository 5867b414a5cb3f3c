"""A model that does not fit is pruned layer by layer where a run can do that, and else refused."""

import pytest

from ptl_fast.base import memory
from ptl_fast.config.config import Config
from ptl_fast.model import loading
from ptl_fast.run import model_memory
from ptl_fast.run.start import make_config
from support.models import DEMO_MODEL


def settings(**changed: object) -> Config:
    return make_config(
        **{"model": str(DEMO_MODEL), "data": "d", "keep": 0.5, "eval_tasks": "none", **changed}
    )


def test_it_is_chosen_where_the_model_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, config = loading.load_config(str(DEMO_MODEL)), settings()
    needed = model_memory.weight_bytes(config, "cpu", original)
    monkeypatch.setattr(memory, "free", lambda device: needed)
    assert not model_memory.with_stream(config, original, "cpu").model.stream
    monkeypatch.setattr(memory, "free", lambda device: needed - 1)
    assert model_memory.with_stream(config, original, "cpu").model.stream
    assert "one layer in memory (--stream)" in capsys.readouterr().out
    for changed in (
        {"eval_tasks": ["nll"]},
        {"scorer": "gradient"},
        {"keep": 1.0, "drop_layers": 1},
    ):
        other = settings(**changed)
        assert not model_memory.with_stream(other, original, "cpu").model.stream, changed


def test_weights_are_counted_as_they_are_computed_with() -> None:
    original = loading.load_config(str(DEMO_MODEL))
    single = model_memory.weight_bytes(settings(dtype="float32"), "cpu", original)
    assert single == 2 * model_memory.weight_bytes(settings(dtype="bfloat16"), "cpu", original)

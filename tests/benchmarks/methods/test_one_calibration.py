"""Two sizes from one calibration are those of two runs, bit for bit."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import reasoning
from benchmarks.methods.one_calibration import one_calibration
from benchmarks.methods.reasoning_run import Bench
from ptl_fast import compress
from ptl_fast.scoring import reconstruction, statistics
from support.reasoning import SETTINGS

SIZES: list[dict[str, Any]] = [{"keep": 0.75}, {"keep": 0.5}, {"keep": 0.5, "scorer": "random"}]
PEERS: list[dict[str, Any]] = [
    {"keep": keep, "scorer": name, "compensate": False}
    for name, keep in (("wanda", 0.75), ("wanda", 0.5), ("flap", 0.5), ("minitron", 0.5))
]
LAYERS: dict[str, Any] = {"keep": 1.0, "drop_layers": 1, "compensate_layers": False}


@pytest.fixture
def bench(reasoning_world: Path, traces: list[str], tmp_path: Path) -> Bench:
    world = ["--model", str(reasoning_world / "model"), "--data", str(reasoning_world / "data")]
    folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    return reasoning.make_bench(reasoning.parse([*world, *traces, *folders, *SETTINGS]))


def weights(bench: Bench, folder: Path, changed: dict[str, Any]) -> bytes:
    settings = {**bench.base, "recovery": "none", "rounds": 1, "eval_tasks": ["none"], **changed}
    compress(**settings, output=str(folder))
    return (folder / "final" / "model.safetensors").read_bytes()


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    """Grows with every call of the function."""
    calls: list[None] = []
    function = getattr(module, name)

    def counts(*given: Any, **named: Any) -> Any:
        calls.append(None)
        return function(*given, **named)

    monkeypatch.setattr(module, name, counts)
    return calls


def test_sizes_and_scorers_of_one_calibration_are_those_of_runs_of_their_own(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [{**LAYERS, "layer_scorer": name} for name in ("block-influence", "angular")]
    cases = [*SIZES, *PEERS, *layers, {"keep": 0.5, "seed": 1}]
    with_grams = counted(monkeypatch, statistics, "collect_with_grams")
    passes = counted(monkeypatch, statistics, "collect")
    eliminations = counted(monkeypatch, reconstruction, "prices")
    found: list[list[bytes]] = []
    numbers = []
    for context in (contextlib.nullcontext(), one_calibration()):
        for calls in (with_grams, passes, eliminations):
            calls.clear()
        with context:
            folder = tmp_path / str(len(found))
            found.append(
                [weights(bench, folder / str(each), case) for each, case in enumerate(cases)]
            )
        numbers.append((len(with_grams), len(passes) - len(with_grams), len(eliminations)))
    assert found[0] == found[1]
    different = len(cases) - len(layers)
    assert len(set(found[0])) >= different, "two layer scores may name the same layer"
    # one has measured for all, with and without Gram matrices; another seed draws other tokens.
    # every run also looks whether one short sequence passes the model: 10 passes, of which 2 differ
    assert numbers == [(4, 16, 3), (2, 3, 2)]

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
PEER: dict[str, Any] = {"scorer": "wanda", "compensate": False}


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
    cases = [*SIZES, {"keep": 0.75, **PEER}, {"keep": 0.5, **PEER}, {"keep": 0.5, "seed": 1}]
    passes = counted(monkeypatch, statistics, "collect_with_grams")
    eliminations = counted(monkeypatch, reconstruction, "prices")
    found: list[list[bytes]] = []
    numbers = []
    for context in (contextlib.nullcontext(), one_calibration()):
        passes.clear()
        eliminations.clear()
        with context:
            folder = tmp_path / str(len(found))
            found.append(
                [weights(bench, folder / str(each), case) for each, case in enumerate(cases)]
            )
        numbers.append((len(passes), len(eliminations)))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(cases), "all of them differ"
    # of the sizes one has measured for all; another seed draws other tokens
    assert numbers == [(4, 3), (2, 2)]

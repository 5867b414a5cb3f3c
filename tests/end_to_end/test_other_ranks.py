"""A training that was killed goes on with another number of ranks, to the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.ranks import kill_ranks_at, run_counted_ranks, run_ranks
from support.runs import RUN

ROUNDS = {**RUN, "rounds": 1, "recovery_tokens": 4000, "output": "run"}


@pytest.fixture(scope="module")
def undisturbed(
    tiny_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The folder of an undisturbed run on so many ranks, run once."""
    found: dict[int, Path] = {}

    def folder(num_ranks: int) -> Path:
        if num_ranks not in found:
            found[num_ranks] = tmp_path_factory.mktemp("undisturbed")
            run_ranks({**tiny_run, **ROUNDS}, found[num_ranks], num_ranks)
        return found[num_ranks] / "run"

    return folder


@pytest.mark.parametrize(("began", "goes_on"), [(2, 1), (2, 4), (1, 2), (4, 2)])
def test_another_number_of_ranks_goes_on(
    began: int,
    goes_on: int,
    tiny_run: dict[str, str],
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    settings = {**tiny_run, **ROUNDS}
    kill_ranks_at("run/round-01/recovery/checkpoint-[5-9]*/complete", settings, tmp_path, began)
    steps = run_counted_ranks(settings, tmp_path, goes_on)
    runs = [undisturbed(began), tmp_path / "run"]
    trained = [json.loads((run / "round-01/recovery.json").read_text()) for run in runs]
    assert trained[0] == trained[1]
    assert 0 < steps <= trained[0]["recovery_steps"] - 5, "not from the round's beginning"
    weights: list[dict[str, Any]] = [load_file(run / "final/model.safetensors") for run in runs]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6, msg=name)

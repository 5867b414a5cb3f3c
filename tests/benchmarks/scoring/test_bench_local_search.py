"""The finer searches that reconstruction is compared with do what they say."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks.scoring import bench_local_search as bench
from ptl_fast.scoring import reconstruction
from support.least_squares import activations, best_columns, gram, projection

A_TI, DOWN_HI = activations(60, 9, 4, 2), projection(5, 9)


def test_lost_share_is_that_of_plain_least_squares() -> None:
    gram_II, kept = gram(A_TI), [0, 2, 3, 7]
    whole = (DOWN_HI @ gram_II * DOWN_HI).sum()
    off = best_columns(A_TI, DOWN_HI, kept)[1]
    share = bench.lost(gram_II, DOWN_HI, torch.tensor(kept))
    assert share == pytest.approx(float(off**2 / whole), rel=1e-6)


def test_one_by_one_is_elimination_without_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "CHUNK", 1000)
    prices = reconstruction.eliminate(gram(A_TI), DOWN_HI)
    for num_kept in (1, 4, 8):
        kept = prices.argsort(descending=True)[:num_kept].sort().values
        assert torch.equal(bench.one_by_one(gram(A_TI), DOWN_HI, num_kept), kept)


def test_gains_are_the_errors_that_a_return_saves() -> None:
    gram_II, kept = gram(A_TI), [1, 4, 8]
    gains = bench.gains(gram_II, DOWN_HI, torch.tensor(kept))
    before = best_columns(A_TI, DOWN_HI, kept)[1] ** 2
    for back in range(9):
        after = best_columns(A_TI, DOWN_HI, sorted({*kept, back}))[1] ** 2
        assert float(gains[back]) == pytest.approx(before - after, abs=1e-7 * before)


def test_swaps_lead_from_the_worst_choice_to_the_best() -> None:
    gram_II = gram(A_TI)
    errors = {
        kept: bench.lost(gram_II, DOWN_HI, torch.tensor(kept))
        for kept in itertools.combinations(range(9), 4)
    }
    worst, best = max(errors, key=errors.__getitem__), min(errors, key=errors.__getitem__)
    found = tuple(bench.swapped(gram_II, DOWN_HI, torch.tensor(worst), 1).tolist())
    assert errors[best] <= errors[found] < 0.5 * errors[worst]
    assert bench.swapped(gram_II, DOWN_HI, torch.tensor(best), 1).tolist() == list(best)


def test_command_writes_a_row_a_layer(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    bench.main(["--num-tokens", "600", "--layers", "1", "3", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["layer"] for row in rows] == [1, 3]
    for row in rows:
        assert 0 < row["swapped"] <= row["chunks"] < 1

"""Every way of removing neurons is checked before it is timed, and what is held meanwhile is
counted.
"""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.compaction import bench_compaction
from benchmarks.compaction.removals import REMOVALS, by_indexing, ours
from support.benchmarks import tiny_model


def test_results_have_every_way_or_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "compaction_test.json"
    bench_compaction.main(
        ["--shape", "tiny", "--device", "cpu", "--samples", "2", "--json", str(file)]
    )
    rows = {row["way"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == list(REMOVALS)
    installed = importlib.util.find_spec("torch_pruning") is not None
    for name, row in rows.items():
        if name.startswith("torch-pruning") and not installed:
            assert row["status"] == "not measured: torch-pruning is not installed"
            assert bench_compaction.table_row(row)[1:] == [row["status"]] * 4
        else:
            assert row["status"] == "ok"
            assert row["time_ms"] > 0
            assert row["ratio_p20"] <= row["ratio"] <= row["ratio_p80"]
            assert len(bench_compaction.table_row(row)) == 5
    assert rows["ours"]["ratio"] == 1


def test_wrong_way_is_refused() -> None:
    def drops_another(victim: Any, kept: list[list[int]]) -> Any:
        return by_indexing(
            victim,
            [[*indices[1:], next(i for i in range(256) if i not in indices)] for indices in kept],
            select=False,
        )

    kept = [list(range(230))] * 2
    bench_compaction.check(tiny_model(), {"ours": ours}, kept)
    with pytest.raises(
        SystemExit, match="refusing to time 'wrong': layer 0 does not hold the neurons that stay"
    ):
        bench_compaction.check(tiny_model(), {"wrong": drops_another}, kept)


def test_peak_is_what_is_held_beside_the_given_tiny_model() -> None:
    """Four megabytes beside it for a moment, after one was given back and before all is."""

    def way(victim: Any, kept: Any) -> Any:
        victim.lm_head.weight = nn.Parameter(torch.zeros(1))
        first = torch.zeros(1 << 20)
        del first
        torch.zeros(1 << 18)

    given_back = 4 * 512 * 64
    peak = bench_compaction.peak_bytes(way, tiny_model(), [])
    assert (4 << 20) - given_back <= peak <= (4 << 20) + 1024


def test_least_traffic_by_hand() -> None:
    """Neuron 0 goes in layer 0, so one row fills its hole; the last one goes in layer 1, and no row
    moves.
    """
    kept = [list(range(1, 256)), list(range(255))]
    assert bench_compaction.least_bytes(tiny_model(), kept) == 2 * 64 * 4 * (2 * 1 + 2 * 255)


def test_ways_leave_what_they_are_given_alone_only_in_copies() -> None:
    original = tiny_model()
    before = copy.deepcopy(original.state_dict())
    bench_compaction.check(original, {"ours": ours}, [list(range(200))] * 2)
    assert all(torch.equal(before[name], value) for name, value in original.state_dict().items())

"""Both ways of elimination are timed on one matrix, and a wrong result is refused."""

import json
from pathlib import Path

import pytest

from benchmarks.scoring import bench_elimination
from ptl_fast.base import positive_definite


def test_a_small_layer_is_measured_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positive_definite, "NARROW", 10)
    file = tmp_path / "result.json"
    arguments = "--width 200 --hidden 8 --num-tokens 300 --samples 1 --json"
    bench_elimination.main([*arguments.split(), str(file)])
    result = json.loads(file.read_text())
    assert result["working_type"] == "torch.float32"
    for way in ("fp64", "now"):
        assert all(result["seconds"][way][part] > 0 for part in ("elimination", "compensation"))
    assert result["agreement"] >= 0.99
    assert positive_definite.NARROW == 10


@pytest.mark.parametrize(
    "found",
    [{"agreement": 0.98, "excess": 0.0}, {"agreement": 1.0, "excess": float("nan")}],
    ids=["other neurons", "no number"],
)
def test_wrong_results_end_the_program(found: dict[str, float]) -> None:
    with pytest.raises(SystemExit, match="wrong results"):
        bench_elimination.check(found)

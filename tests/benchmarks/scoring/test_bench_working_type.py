"""NLL by both working types, on the bundled model."""

import json
from pathlib import Path

import pytest

from benchmarks.scoring import bench_working_type
from ptl_fast.base import positive_definite
from support.models import DEMO_MODEL


def test_both_ways_prune_the_same_model_and_leave_it_as_it_was(tmp_path: Path) -> None:
    data, file = tmp_path / "data.jsonl", tmp_path / "result.json"
    rows = [{"question": f"{one} + 1 =", "answer": f" {one + 1}"} for one in range(200)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    narrow = positive_definite.NARROW
    flags = f"--model {DEMO_MODEL} --data {data} --documents 150 --held-out 20 --keep 0.5"
    bench_working_type.main([*flags.split(), "--sequence-length", "128", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["fp32"] == pytest.approx(found["fp64"], rel=0.02)
    assert found["fp64"] != found["dense"]
    assert min(found["agreement"]) > 0.9
    assert found["fp32"] != found["fp64"]
    assert narrow == positive_definite.NARROW

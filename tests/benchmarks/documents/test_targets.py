"""The targets for speed against results."""

import importlib.util
from typing import Any

from benchmarks.documents import targets


def test_targets_say_how_many_rows_reach_them() -> None:
    """Two of three reach one target, none another that is an upper bound, and a third was not
    measured.
    """
    on_cpu, on_gpu = {"device_type": "cpu"}, {"device_type": "cuda"}
    kernels = [
        {"op": "compact_ffn", "peer": "three x[idx]", "status": status, "ratio_to_peer": ratio}
        for status, ratio in (("ok", 1.5), ("ok", 2.0), ("ok", 4.5), ("not measured: x", 9.0))
    ]
    by_prefix: dict[str, list[dict[str, Any]]] = {
        "kernels": [
            {"environment": on_cpu, "rows": kernels},
            {"environment": on_gpu, "rows": kernels},
        ],
        "stages": [{"environment": on_cpu, "loop_overhead": 0.04, "not_recovery": 0.4}],
        "speedup": [],
        "scoring": [],
        "compaction": [],
    }
    rows = {row[0]: row[1:4] for row in targets.table(by_prefix, "cpu")[1:]}
    assert rows["a layer loses 10%: three x[idx] / ours"] == [
        "at least 2.00",
        "1.50 to 4.50",
        "held in 2 of 3",
    ]
    assert rows["loop overhead of a run"] == ["at most 5.0%", "4.0%", "held"]
    assert rows["all of a run that is not recovery"] == ["at most 5.0%", "40.0%", "missed"]
    assert rows["scoring pass: plain forward pass / ours"] == ["at least 1.00", "not measured", ""]


def test_every_target_names_a_module_that_measures_it() -> None:
    for target in targets.TARGETS:
        assert importlib.util.find_spec(f"benchmarks.{target.command}"), target

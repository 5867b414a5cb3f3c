"""The tables of docs/kernels.md are what the raw results give."""

import json
from pathlib import Path

import pytest

from benchmarks.documents import kernels_table
from benchmarks.kernels import bench_kernels, cases


def test_committed_document_is_what_the_raw_results_give() -> None:
    kernels_table.main(["--check"])


def test_document_shows_losses_and_keeps_unmeasured_devices(tmp_path: Path) -> None:
    case = next(cases.cases("cpu", op="residual_change"))
    numbers = {
        "time_ms": 2.0,
        "peer_ms": 1.0,
        "ratio_to_peer": 0.5,
        "ratio_p20": 0.4,
        "ratio_p80": 0.6,
        "max_rel_error": 1e-6,
    }
    row = bench_kernels.make_row(
        case, "eager cosine and norms", status="ok", **numbers, gbs=3.0, percent_of_copy=30.0
    )
    environment = {"device_type": "cpu", "device": "Some CPU"}
    content = {"environment": environment, "ceilings": {"copy_gbs": 10.0}, "rows": [row]}
    (tmp_path / "kernels_some.json").write_text(json.dumps(content))
    document = tmp_path / "kernels.md"
    document.write_text("before\n<!-- table:residual_change -->\nstale\n<!-- end -->\nafter\n")
    flags = ["--document", str(document), "--results", str(tmp_path)]
    with pytest.raises(SystemExit) as failure:
        kernels_table.main([*flags, "--check"])
    assert failure.value.code not in (0, None)
    kernels_table.main(flags)
    text = document.read_text()
    assert (
        "| Some CPU | SmolLM2-135M T1024 H576 I1536 | float32 | 2.000 | 3.0 (30%) | 1.0e-06 | 0.50"
        " (0.40 to 0.60) |"
    ) in text
    assert "Not measured: GPU, Llama3-8B T8192 H4096 I14336 / " in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale" not in text
    kernels_table.main([*flags, "--check"])

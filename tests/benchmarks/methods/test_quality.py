"""The runs of benchmarks/gpu/quality.sh, collected into one file."""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness.markdown import to_markdown
from benchmarks.methods import quality


def test_quality_compares_final_models_and_names_unfinished_runs(tmp_path: Path) -> None:
    def report(num_parameters: int, nll: float, finished: bool) -> dict[str, Any]:
        size = {"num_layers": 2, "width": 8, "flops_per_token": 10}
        final = {**size, "num_parameters": num_parameters, "eval": {"nll": {"nll": nll}}}
        rounds = [
            {
                "recovery_tokens": 30,
                "seconds": {"recover": 2.0},
                "eval_pruned": {"nll": {"nll": 9.0}},
            }
        ] * 2
        dense = {**size, "num_parameters": 100, "eval": {"nll": {"nll": 1.0}}}
        return {
            "environment": {},
            "config": {"model": "/x/small"},
            "dense": dense,
            "rounds": rounds,
            "final": final if finished else None,
        }

    for name, content in (("ptl", report(80, 1.5, True)), ("slicegpt", report(70, 2.0, False))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(content))
    (tmp_path / "killed").mkdir()
    results = quality.collect(tmp_path)
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["ptl"]["parameters"] == 0.8
    assert rows["ptl"]["recovery_tokens"] == 60
    assert (
        rows["slicegpt"]["status"]
        == rows["killed"]["status"]
        == "not measured: the run is not finished"
    )
    assert "| ptl | 80.0% | 100.0% | 60 | 1.5 |" in to_markdown(quality.table(results))

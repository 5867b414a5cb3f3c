"""The command that tries model types."""

import json
from pathlib import Path

import pytest

from benchmarks.families import checks, run


def test_named_types_are_tried_and_written(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    run.main(["mamba", "--json", str(file)])
    results = json.loads(file.read_text())
    (row,) = results["rows"]
    assert (row["label"], row["layers"]) == ("mamba", checks.EXACT)
    assert results["environment"]["transformers"]


def test_experts_alone_are_tried_again_and_put_into_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    names = ("label", "neurons", "layers", "generation")
    rows = [dict(zip(names, (label, "a", "b", ""), strict=True)) for label in ("mixtral", "llama")]
    file.write_text(json.dumps({"seconds": 5, "rows": rows}))
    run.main(["mixtral", "--json", str(file), "--experts-again"])
    results = json.loads(file.read_text())
    assert results["rows"] == [{**rows[0], "experts": "exact"}, {**rows[1], "experts": ""}]
    assert results["seconds"] == 5
    assert results["experts"]["environment"]["transformers"]


def test_a_wrong_result_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = checks.Outcome(label="x", neurons="WRONG: all of it", layers=checks.EXACT)
    monkeypatch.setattr(checks, "check", lambda tiny: outcome)
    with pytest.raises(SystemExit, match="wrong: x"):
        run.main(["mamba", "--json", str(tmp_path / "models.json")])

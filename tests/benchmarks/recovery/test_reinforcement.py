"""Each way of recovering is measured once, from the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.recovery import reinforcement, study


class FakePrunedModel:
    """Recovery adds 1 to a weight for cpt and 10 for grpo; cpt takes 0.01 s a token, grpo 30 s."""

    def __init__(self, *given: Any) -> None:
        self.model = nn.Linear(1, 1)
        with torch.no_grad():
            self.model.weight.fill_(0)
        self.asked: list[tuple[str, int]] = []

    def accuracy(self, model: nn.Linear) -> float:
        return model.weight.item()

    def recover(self, model: nn.Linear, name: str, num_tokens: int = 0) -> dict[str, Any]:
        self.asked.append((name, num_tokens))
        with torch.no_grad():
            model.weight.add_(1 if name == "cpt" else 10)
        seconds = 0.01 * num_tokens if name == "cpt" else 30.0
        details = {} if name == "cpt" else {"grpo": {"rollouts": 5120}}
        return {
            "accuracy": model.weight.item(),
            "tokens": num_tokens,
            "cpu_seconds": seconds,
            **details,
        }


def test_every_way_starts_from_the_pruned_model_and_cpt_gets_equal_time() -> None:
    seed, rows = FakePrunedModel(), {}  # type: ignore[var-annotated]
    reinforcement.measure_arms(seed, rows, rows.__setitem__, 1000)  # type: ignore[arg-type]
    assert {arm: row["accuracy"] for arm, row in rows.items()} == {
        "untouched": 0,
        "grpo": 10,
        "cpt": 1,
        "cpt, then grpo": 11,
        "cpt, as long": 1,
    }
    assert seed.asked == [("grpo", 0), ("cpt", 1000), ("grpo", 0), ("cpt", 4000)]
    assert rows["cpt, then grpo"]["cpu_seconds"] == rows["cpt, as long"]["cpu_seconds"] == 40
    reinforcement.measure_arms(seed, rows, rows.__setitem__, 1000)  # type: ignore[arg-type]
    assert len(seed.asked) == 4, "what is measured is not measured again"


def test_interrupted_study_goes_on_and_refuses_other_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reinforcement, "PrunedModel", FakePrunedModel)
    flags = [
        "--split",
        "validation",
        "--json",
        str(tmp_path / "rows.json"),
        "--first-tokens",
        "1000",
    ]
    assert study.main([*flags, "--seeds", "10"]) == 0
    results = json.loads((tmp_path / "rows.json").read_text())
    del results["rows"]["10"]["cpt, as long"]
    (tmp_path / "rows.json").write_text(json.dumps(results))
    assert study.main([*flags, "--seeds", "10", "11"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert list(rows) == ["10", "11"]
    assert all(len(arms) == 5 for arms in rows.values())
    assert study.main([*flags, "--seeds", "10", "--width", "128"]) == 2

"""Every way of recovering starts from the same pruned model, and text gets as much time."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from benchmarks.recovery import on_policy, study


class FakePrunedModel:
    """A recovery adds a number of its own to a weight; a token of cpt takes 0.01 s and one of
    distill 0.02, a step of opd 0.5.
    """

    asked: ClassVar[list[tuple[int, str, int]]] = []

    def __init__(self, seed: int, split: str, settings: dict[str, Any], width: int) -> None:
        self.settings, self.model = settings, nn.Linear(1, 1)
        self.asked.append((seed, split, width))
        with torch.no_grad():
            self.model.weight.fill_(0)

    def configure(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def accuracy(self, model: nn.Linear) -> float:
        return model.weight.item()

    def recover(self, model: nn.Linear, name: str, num_tokens: int = 0) -> dict[str, Any]:
        steps = self.settings["opd_steps"]
        with torch.no_grad():
            model.weight.add_({"cpt": 1, "distill": 2, "opd": 10}[name])
        seconds = {"cpt": 0.01, "distill": 0.02}.get(name, 0) * num_tokens
        details = {"opd": {"rollouts": 32 * steps}} if name == "opd" else {}
        return {
            "accuracy": model.weight.item(),
            "tokens": num_tokens,
            "cpu_seconds": seconds + 0.5 * steps * (name == "opd"),
            **details,
        }


def test_text_gets_the_time_of_the_first_and_interrupted_rows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_policy, "PrunedModel", FakePrunedModel)
    monkeypatch.setattr(on_policy, "SETTINGS", {**on_policy.SETTINGS, "opd_steps": 60})
    FakePrunedModel.asked.clear()
    file = tmp_path / "rows.json"
    flags = ["--section", "on_policy", "--split", "validation", "--json", str(file)]
    assert study.main([*flags, "--seeds", "4"]) == 0
    results = on_policy.measure("validation", [4], file)
    rows = copy.deepcopy(results["rows"]["4"])
    assert {arm: row["accuracy"] for arm, row in rows.items() if "probe" not in arm} == {
        "untouched": 0,
        **dict.fromkeys(on_policy.ARMS, 10),
        "cpt, as long": 1,
        "distill, as long": 2,
        "cpt, then opd": 11,
    }
    for arm in ("opd", "cpt, as long", "distill, as long", "cpt, then opd"):
        assert rows[arm]["cpu_seconds"] == pytest.approx(30), arm
    assert rows["cpt, as long"]["tokens"] == 2 * rows["distill, as long"]["tokens"] == 3000
    assert rows["cpt, then opd"]["opd"]["rollouts"] == 32 * 30
    on_policy.measure("validation", [4], file)
    assert FakePrunedModel.asked == [(4, "validation", 192)], "measured once"
    with pytest.raises(ValueError, match="holds rows of other settings"):
        on_policy.measure("test", [4], file)

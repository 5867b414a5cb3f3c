"""Whole runs with a quality gate whose measurements are a script: the k-th decision finds the k-th
value.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ptl_fast import compress
from ptl_fast.recovery import registry
from ptl_fast.recovery.task import RecoveryTask
from support.gate import DECIDED, SCRIPT, actions
from support.recovery import with_training


def test_rounds_are_extended_undone_and_split_until_the_smallest_step_fails(
    gated: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No document is trained on in two rounds; an extension sees its own round's once more."""
    tasks_given: list[RecoveryTask] = []
    train = registry.RECOVERIES["cpt"].train

    def note(model: Any, task: RecoveryTask) -> Any:
        tasks_given.append(task)
        return train(model, task)

    monkeypatch.setitem(registry.RECOVERIES, "cpt", with_training("cpt", note))
    follow(SCRIPT, tmp_path)
    report = compress(**gated, output=tmp_path)
    assert actions(report) == DECIDED
    assert [
        (record["kind"], record["width"], record["num_layers"]) for record in report["rounds"]
    ] == [
        ("neurons", 40, 5),
        ("neurons", 32, 5),
        ("neurons", 24, 5),
        ("layers", 24, 4),
    ]
    assert [made["step"] for made in report["decisions"]] == [24, 24, 8, 8, 8, 8, 2, 2, 1, 1, 1]
    assert [made["next_step"] for made in report["decisions"] if made["action"] == "back-off"] == [
        8,
        1,
    ]
    names = [
        "01",
        "01-extra-1",
        "01",
        "02",
        "02-extra-1",
        "03",
        "04",
        "04-extra-1",
        "04",
        "05",
        "05-extra-1",
    ]
    assert [task.name for task in tasks_given] == [f"round-{name}" for name in names]
    assert [made["tokens"] for made in report["decisions"]] == [
        task.num_tokens for task in tasks_given
    ]
    assert [task.num_tokens for task in tasks_given] == [
        1500,
        750,
        500,
        500,
        250,
        500,
        1500,
        750,
        750,
        750,
        375,
    ]

    def rows(index: int) -> set[tuple[int, ...]]:
        return {tuple(row.tolist()) for row in tasks_given[index].tokens.input_ids}

    kept = [2, 3, 5, 8, 9]
    assert len(set.union(*map(rows, kept))) == sum(len(rows(index)) for index in kept), (
        "no sequence in two rounds"
    )
    assert all(rows(index) == rows(index - 1) for index in (1, 4, 7, 10)), (
        "an extension has its round's"
    )

    assert [len(record.get("extra_recovery", [])) for record in report["rounds"]] == [0, 1, 0, 0]
    assert [record["recovery_tokens"] for record in report["rounds"]] == [500, 500, 500, 750]
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert (final.config.intermediate_size, final.config.num_hidden_layers) == (24, 4)
    assert report["final"]["eval"] == report["rounds"][-1]["eval"]
    for name in ("round-01.failed-1", "round-04.failed-1", "round-05.failed-1"):
        files = {file.name for file in (tmp_path / name).iterdir()}
        assert {
            "plan.json",
            "record.json",
            "statistics.safetensors",
            "pruned.json",
            "recovered-extra-1.json",
        } <= files
        assert not [file for file in files if file.startswith(("model", "optimizer"))]
        assert len(json.loads((tmp_path / name / "record.json").read_text())["extra_recovery"]) == 1
    folders = {file.name for file in tmp_path.iterdir() if file.is_dir()}
    assert folders == {
        "copies",
        "final",
        "log",
        "sizes",
        *(f"round-0{n}" for n in "1234"),
        *(f"round-0{n}.failed-1" for n in "145"),
    }


def test_run_in_smaller_steps_reaches_its_target(
    gated: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And a finished one answers at once, with what it said."""
    follow(SCRIPT[:-2] + "fp", tmp_path)
    report = compress(**gated, output=tmp_path)
    assert actions(report).endswith("5.1e 5.1p")
    assert report["stopped"] is None
    assert (report["final"]["width"], report["final"]["num_layers"]) == (24, 3)
    said = capsys.readouterr().out
    assert "Quality gate, round 1, attempt 1, extension 1: nll nll is" in said
    assert (
        "back to the original model, with steps of at most 8 neurons a layer instead of 24." in said
    )
    assert "stopped" not in said
    weights = (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns
    assert compress(**gated, output=tmp_path)["decisions"] == report["decisions"]
    assert (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns == weights


def test_run_without_a_round_that_passes_ends_with_the_original(
    gated: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    follow("ffff", tmp_path)
    report = compress(**gated, output=tmp_path)
    assert actions(report) == "1.1e 1.1b 1.2e 1.2s"
    sentence = (
        "The quality gate stopped this run before its target: round 1 failed the gate nll:nll, and"
        " 8 neurons a layer is the smallest step"
        " (--width-multiple 8). The result is the original model, unchanged: no round has passed."
    )
    assert report["stopped"] == sentence
    assert sentence in capsys.readouterr().out
    assert all(
        sentence in (tmp_path / name).read_text() for name in ("report.md", "final/README.md")
    )
    assert report["rounds"] == []
    assert report["final"] == {name: report["dense"][name] for name in report["final"]}
    original, final = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (gated["model"], tmp_path / "final")
    )
    assert all(torch.equal(tensor, final[name]) for name, tensor in original.items())
    assert not list(tmp_path.glob("round-0?/model"))
    again = compress(**gated, output=tmp_path)
    assert (again["decisions"], again["stopped"]) == (report["decisions"], sentence)


@pytest.mark.parametrize(
    ("options", "script", "decided"),
    [
        pytest.param(
            {"recovery": "none"},
            "fpppf" + "f",
            "1.1b 1.2p 2.1p 3.1p 4.1b 4.2s",
            id="none-only-goes-back",
        ),
        pytest.param({"keep": 1.0, "drop_layers": 0}, "ff", "1.1e 1.1s", id="training-has-no-step"),
        pytest.param(
            {"keep": 1.0, "drop_layers": 0, "slice_hidden": 0.75},
            "ff",
            "1.1e 1.1s",
            id="slicing-is-one-step",
        ),
    ],
)
def test_what_cannot_help_is_not_tried(
    options: dict,
    script: str,
    decided: str,
    gated: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
) -> None:
    follow(script, tmp_path)
    report = compress(**{**gated, **options}, output=tmp_path)
    assert actions(report) == decided
    assert report["stopped"]


def test_run_that_the_gate_stops_has_no_final_recovery(
    gated: dict[str, Any], follow: Callable[[str, Path], None], tmp_path: Path
) -> None:
    follow("fpf", tmp_path)
    settings = {
        **gated,
        "drop_layers": 0,
        "keep": 0.65,
        "recovery": "none",
        "final_recovery": "cpt",
    }
    report = compress(**settings, output=tmp_path)
    assert actions(report) == "1.1b 1.2p 2.1s"
    assert [record["kind"] for record in report["rounds"]] == ["neurons"]
    assert report["final"]["eval"] == report["rounds"][0]["eval"]


def test_round_that_diverges_is_undone(
    gated: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not extended: the step is halved until none is left, and the result is the original.
    Without a gate it is an error.
    """
    settings = {
        **gated,
        "learning_rate": 1e9,
        "drop_layers": 0,
        "keep": 0.6667,
        "rounds": 1,
        "width_multiple": 8,
    }
    report = compress(**settings, output=tmp_path / "run")
    actions = [
        (decision["action"], decision["step"], decision["measured"])
        for decision in report["decisions"]
    ]
    assert actions == [("back-off", 16, None), ("stop", 8, None)]
    assert report["final"]["width"] == report["dense"]["width"]
    assert "recovery diverged: back to the original model" in capsys.readouterr().out
    failed = json.loads((tmp_path / "run" / "round-01.failed-1" / "record.json").read_text())
    assert "recovery's loss is" in failed["diverged"]
    assert "| diverged |" in (tmp_path / "run" / "report.md").read_text()
    assert compress(**settings, output=tmp_path / "run")["decisions"] == report["decisions"], (
        "again, it only reads"
    )
    ungated = {name: value for name, value in settings.items() if name not in ("gate", "max_drop")}
    with pytest.raises(ValueError, match=r"recovery's loss is .* lower --learning-rate"):
        compress(**ungated, output=tmp_path / "other")

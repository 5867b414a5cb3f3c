"""A quality gate on the bundled model, and what it really measures."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ptl_fast import compress
from support.gate import actions

BUNDLED = {
    "preset": "demo",
    "rounds": 1,
    "scorer": "output-change",
    "compensate": False,
    "recovery_split": "growing",
    "recovery_tokens": 4000,
    "sequence_length": 128,
    "global_batch": 8,
    "micro_batch": 8,
    "calibration_tokens": 1000,
    "learning_rate": 1.5e-4,
    "lr_schedule": "round",
    "keep_optimizer_state": False,
    "device": "cpu",
}


def test_far_too_large_step_is_extended_then_halved_and_the_run_stops_with_the_best_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """576 of 768 neurons are too many at once, and 192 are not, but 192 more are: all on the screen
    and in both reports.
    """
    settings = {
        **BUNDLED,
        "scorer": "activation",
        "eval_tasks": "nll",
        "eval_limit": 20,
        "gate": "nll:nll",
        "max_drop": 0.004,
    }
    report = compress(**settings, keep=0.25, width_multiple=192, output=tmp_path)
    assert actions(report) == "1.1e 1.1b 1.2p 2.1e 2.1s"
    assert [made["step"] for made in report["decisions"]] == [576, 576, 192, 192, 192]
    dense = report["dense"]["eval"]["nll"]["nll"]
    for made in report["decisions"]:
        assert (made["task"], made["metric"], made["dense"]) == ("nll", "nll", dense)
        assert made["limit"] == pytest.approx(dense + 0.004)
        assert (made["measured"] <= made["limit"]) == (made["action"] == "pass")
    assert report["final"]["width"] == report["rounds"][-1]["width"] == 576
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").config.intermediate_size == 576
    text, said = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    for sentence in (
        report["stopped"],
        "back to the original model, with steps of at most 192 neurons a layer instead of 576",
        (
            "the run stops (192 neurons a layer is the smallest step (--width-multiple 192)); the"
            " result is the model after round 1"
        ),
        *(
            f"recovery goes on for {made['next_tokens']:,} tokens"
            for made in report["decisions"]
            if made["action"] == "extend"
        ),
    ):
        assert sentence in text, sentence
        assert sentence in said, sentence
    assert "round 2 failed the gate nll:nll" in report["stopped"]


def test_smaller_steps_rescue_what_one_large_step_loses(tmp_path: Path) -> None:
    """384 neurons at once fail, also when trained longer; two steps, the second scored on what is
    left, reach the target.
    """
    settings = {
        **BUNDLED,
        "learning_rate": 2e-5,
        "max_extra_recovery": 0.1,
        "eval_tasks": "nll",
        "eval_limit": 20,
    }
    report = compress(
        **settings, gate="nll:nll", max_drop=0.0115, keep=0.5, width_multiple=64, output=tmp_path
    )
    assert actions(report) == "1.1e 1.1b 1.2p 2.1p"
    assert report["stopped"] is None
    assert (
        report["final"]["width"]
        == 384
        == json.loads((tmp_path / "round-01.failed-1" / "record.json").read_text())["width"]
    )
    assert (
        report["final"]["eval"]["nll"]["nll"]
        < report["decisions"][1]["limit"]
        < report["decisions"][1]["measured"]
    )


def test_gate_holds_an_accuracy(tmp_path: Path) -> None:
    """480 neurons at once cost more than five points; 192 and then 192 more do not, and the last 96
    do.
    """
    gate = {
        "eval_tasks": "demo_arithmetic",
        "gate": "demo_arithmetic:exact_match/final-number",
        "max_drop": 0.05,
    }
    settings = {**BUNDLED, **gate, "recovery": "none", "eval_limit": 50, "eval_batch": 50}
    report = compress(**settings, keep=0.375, width_multiple=96, output=tmp_path)
    assert actions(report) == "1.1b 1.2p 2.1p 3.1s"
    dense = report["dense"]["eval"]["demo_arithmetic"]["exact_match/final-number"]
    assert [made["limit"] for made in report["decisions"]] == [pytest.approx(dense - 0.05)] * 4
    assert [made["measured"] < made["limit"] for made in report["decisions"]] == [
        True,
        False,
        False,
        True,
    ]
    assert report["final"]["width"] == 384
    assert report["final"]["eval"]["demo_arithmetic"]["exact_match/final-number"] >= dense - 0.05

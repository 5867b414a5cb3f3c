"""Batches, rates and the file of --deepspeed."""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast.config.trainer import TrainerSettings, read_deepspeed, zero_stage


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": float("nan")}, "--learning-rate nan must be a finite number"),
        ({"checkpoint_minutes": -1.0}, "--checkpoint-minutes at least 0"),
        ({"checkpoint_minutes": float("inf")}, "--checkpoint-minutes inf must be a finite number"),
        ({"global_batch": 0}, "--global-batch 0 must be at least 1"),
        ({"micro_batch": 0}, "--micro-batch 0 must be at least 1"),
        (
            {"report_to": "tensorboard,wand"},
            "unknown --report-to wand; choose tensorboard, wandb, trackio, none; did you mean"
            " wandb",
        ),
        ({"report_to": "none,wandb"}, "unknown --report-to none; choose"),
    ],
)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerSettings(**values).check()


def test_defaults_make_sense() -> None:
    TrainerSettings().check()


@pytest.mark.parametrize(
    ("report_to", "names"),
    [
        ("tensorboard", ["tensorboard"]),
        ("trackio,tensorboard", ["trackio", "tensorboard"]),
        ("none", []),
    ],
)
def test_several_trackers_are_named_with_commas(report_to: str, names: list[str]) -> None:
    settings = TrainerSettings(report_to=report_to)
    settings.check()
    assert settings.trackers == names


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_shipped_deepspeed_files_are_found_by_name(name: str) -> None:
    assert read_deepspeed(name)["zero_optimization"]["stage"] == int(name[-1])
    assert zero_stage(name) == int(name[-1])
    assert zero_stage(None) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; choose zero2, .* or give a JSON file"),
        ("a: b", "is no JSON file"),
        ("[]", "holds no JSON object"),
    ],
)
def test_a_deepspeed_file_that_is_none_is_named(
    content: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=f"--deepspeed {file}.*{message}"):
        read_deepspeed(str(file))

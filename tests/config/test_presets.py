"""Presets: the sizes that they reach, and that the papers' presets train as published."""

import itertools
from pathlib import Path

import pytest

from benchmarks.documents import flops_table
from ptl_fast.config.presets import PRESETS, shipped_config
from ptl_fast.pruning.schedule import Round
from support.presets import TARGETS

ALIGNED = ["llama3-8b", "gemma2-9b", "qwen2.5-7b"]


PAPERS = [name for name in TARGETS if name.endswith("-paper")]


def schedule_of(preset: str) -> list[Round]:
    return flops_table.dry_run_of(preset)[2]


def test_every_preset_is_tested() -> None:
    assert {file.stem for file in PRESETS.glob("*.yaml")} == set(TARGETS)


@pytest.mark.parametrize("preset", PAPERS)
def test_paper_presets_remove_steps_of_1000_neurons(preset: str) -> None:
    settings, config, schedule = flops_table.dry_run_of(preset)
    widths = [
        config.intermediate_size,
        *(step.width for step in schedule if step.kind == "neurons"),
    ]
    assert {before - after for before, after in itertools.pairwise(widths)} == {1000}
    assert (
        settings.model.dtype,
        settings.trainer.deepspeed,
        settings.trainer.gradient_checkpointing,
    ) == (
        "bfloat16",
        "zero2",
        True,
    )


@pytest.mark.parametrize("preset", [name for name in PAPERS if "-rl-" not in name])
def test_paper_presets_train_as_published(preset: str) -> None:
    """Global batch 32 at cut-off 512 on four ranks, 100,000 sequences a round; 8e-6 for Gemma2,
    4e-6 for the others.
    """
    settings, _, schedule = flops_table.dry_run_of(preset)
    assert (
        settings.data.sequence_length,
        settings.trainer.global_batch,
        settings.trainer.micro_batch * 4 * 4,
    ) == (
        512,
        32,
        32,
    )
    assert settings.recovery.recovery_tokens == len(schedule) * 100_000 * 512
    assert settings.recovery.recovery_split == "equal"
    assert settings.trainer.learning_rate == (8e-6 if "gemma" in preset else 4e-6)


@pytest.mark.parametrize("preset", ALIGNED)
def test_aligned_presets_keep_widths_divisible_by_128_times_8(preset: str) -> None:
    assert {step.width % 1024 for step in schedule_of(preset)} == {0}


def test_local_folder_wins_over_a_shipped_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_config("google/gemma-2-9b") is not None
    (tmp_path / "google" / "gemma-2-9b").mkdir(parents=True)
    assert shipped_config("google/gemma-2-9b") is None

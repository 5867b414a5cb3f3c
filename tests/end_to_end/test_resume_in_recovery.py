"""A run that goes on inside a round's recovery computes no least squares whose result a checkpoint
replaces, and ends as if it had.
"""

from pathlib import Path
from typing import Any

import pytest

from ptl_fast import compress
from ptl_fast.pruning import compensate
from ptl_fast.recovery import registry, trainer
from ptl_fast.scoring import dropped_blocks
from support.recovery import Killed, with_training

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "keep": 0.5,
    "rounds": 1,
    "width_multiple": 8,
    "sequence_length": 64,
    "global_batch": 4,
    "micro_batch": 2,
    "recovery_tokens": 3000,
    "recovery_split": "equal",
    "learning_rate": 1e-3,
    "calibration_tokens": 500,
    "checkpoint_minutes": 0.0,
    "gradient_checkpointing": False,
}

# A round of two layers instead of neurons, folded into the FFN before them.
LAYERS: dict[str, Any] = {
    "keep": 1.0,
    "drop_layers": 2,
    "layers_per_round": 2,
    "layer_scorer": "last",
}


def run_until_step(number: int, settings: dict[str, Any], output: Path) -> None:
    def die(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == number:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.StopAtNan, "on_step_begin", die)
        with pytest.raises(Killed):
            compress(**settings, output=output)


def count_least_squares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each layer, or block of dropped layers, that is fitted from now on."""
    solved: list[int] = []

    def counted(solve: Any) -> Any:
        def counting(*args: Any) -> Any:
            solved.append(1)
            return solve(*args)

        return counting

    monkeypatch.setattr(compensate, "least_squares", counted(compensate.least_squares))
    monkeypatch.setattr(dropped_blocks, "fit", counted(dropped_blocks.fit))
    return solved


@pytest.mark.parametrize("shape", [{}, LAYERS], ids=["neurons", "layers"])
def test_resume_inside_recovery_solves_nothing_and_ends_bit_identical(
    shape: dict[str, Any],
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**tiny_run, **SETTINGS, **shape}
    compress(**settings, output=tmp_path / "whole")
    run_until_step(5, settings, tmp_path / "killed")
    solved = count_least_squares(monkeypatch)
    compress(**settings, output=tmp_path / "killed")
    assert not solved
    results = [tmp_path / name / "final" / "model.safetensors" for name in ("whole", "killed")]
    assert results[0].read_bytes() == results[1].read_bytes()
    records = [tmp_path / name / "round-01" / "folded_layers.json" for name in ("whole", "killed")]
    assert [file.exists() for file in records] == [bool(shape)] * 2


@pytest.mark.parametrize(("shape", "num_solved"), [({}, 5), (LAYERS, 1)], ids=["neurons", "layers"])
def test_resume_before_the_first_checkpoint_solves_again(
    shape: dict[str, Any],
    num_solved: int,
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**tiny_run, **SETTINGS, **shape}
    compress(**settings, output=tmp_path / "whole")
    run_until_step(0, settings, tmp_path / "killed")
    solved = count_least_squares(monkeypatch)
    compress(**settings, output=tmp_path / "killed")
    assert len(solved) == num_solved, "one for each layer, or block of layers"
    results = [tmp_path / name / "final" / "model.safetensors" for name in ("whole", "killed")]
    assert results[0].read_bytes() == results[1].read_bytes()


@pytest.mark.parametrize(("kl", "solves"), [(0.0, False), (0.1, True)])
def test_a_reference_model_needs_the_weights_that_recovery_began_with(
    kl: float,
    solves: bool,
    tiny_run: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The penalty of --grpo-kl compares with them, also after the checkpoint."""
    settings = {**tiny_run, **SETTINGS, "recovery": "grpo", "grpo_kl": kl}
    settings |= {"grpo_prompt_tokens": 64, "grpo_response_tokens": 8}

    def leave_a_checkpoint(model: Any, task: Any) -> Any:
        task.folder.checkpoint(1).path.mkdir(parents=True)
        task.folder.checkpoint(1).mark()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(registry.RECOVERIES, "grpo", with_training("grpo", leave_a_checkpoint))
        with pytest.raises(Killed):
            compress(**settings, output=tmp_path)
    solved = count_least_squares(monkeypatch)
    finish = with_training("grpo", lambda model, task: registry.RecoveryResult())
    monkeypatch.setitem(registry.RECOVERIES, "grpo", finish)
    compress(**settings, output=tmp_path)
    assert bool(solved) == solves

"""What every training shares: batches, divergence, checkpoints that hold every weight, and a model
that is as it was before.
"""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerState

from ptl_fast.base.run_files import RecoveryFolder
from ptl_fast.recovery.trainer import Progress
from support.mixtures import make_mixture
from support.recovery import config, killed_at_step, packed, train


def test_global_batch_must_divide(llama: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--global-batch 5 is no multiple of --micro-batch 2"):
        train(llama, packed(), 1500, config(global_batch=5), tmp_path / "recovery")


def test_nan_loss_names_the_step(llama: PreTrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        llama.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="loss is nan at step 1 of"):
        train(llama, packed(), 1500, config(), tmp_path / "round-01" / "recovery")


def test_progress_moves_inside_a_step() -> None:
    shown: Any = Progress("round-01")
    arguments, state = SimpleNamespace(gradient_accumulation_steps=4), TrainerState(max_steps=9)
    shown.on_train_begin(arguments, state, None)
    told = []
    for step in range(2):
        state.global_step = step
        for _ in range(3):  # the last micro-batch ends the step
            shown.on_substep_end(arguments, state, None)
        told.append(shown.bar.text())
        assert shown.bar.n == step + 0.75
        state.global_step += 1
        shown.on_log(arguments, state, None, logs={"loss": 2.0})
        told.append(shown.bar.text())
    shown.on_train_end(arguments, state, None)
    assert told == [
        "round-01: recover 0/9 batch 3/4",
        "round-01: recover 1/9 loss 2",
        "round-01: recover 1/9 loss 2, batch 3/4",
        "round-01: recover 2/9 loss 2",
    ]


def test_gradient_checkpointing_changes_nothing(llama: PreTrainedModel, tmp_path: Path) -> None:
    other = copy.deepcopy(llama)
    for model, flag in ((llama, True), (other, False)):
        train(
            model,
            packed(),
            500,
            config(gradient_checkpointing=flag),
            tmp_path / str(flag) / "recovery",
        )
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
def test_a_killed_training_goes_on_with_its_checkpoints_experts(
    model_type: str, tmp_path: Path
) -> None:
    """transformers saves the experts of some types one by one, under names of their own."""
    models = [make_mixture(model_type, num_hidden_layers=2) for _ in range(3)]
    folders = [tmp_path / name / "recovery" for name in ("undisturbed", "killed", "killed")]
    given = config(checkpoint_minutes=0, gradient_checkpointing=False)
    train(models[0], packed(), 500, given, folders[0])
    killed_at_step(3, lambda: train(models[1], packed(), 500, given, folders[1]))
    assert [each.name for each in folders[1].glob("checkpoint-*")] == ["checkpoint-3"]
    train(models[2], packed(), 500, given, folders[2])
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, models[2].get_parameter(name)), name


def test_a_checkpoint_without_a_weight_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Such as one that transformers saved under other names."""
    given = config(checkpoint_minutes=0, gradient_checkpointing=False)
    killed_at_step(2, lambda: train(copy.deepcopy(llama), packed(), 500, given, tmp_path))
    checkpoint = RecoveryFolder(tmp_path).checkpoint(2)
    file = checkpoint.path / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.other"] = weights.pop("lm_head.weight")
    save_file(weights, file, metadata={"format": "pt"})
    checkpoint.mark()
    with pytest.raises(ValueError, match=r"they differ in lm_head.weight; delete that folder"):
        train(llama, packed(), 500, given, tmp_path)

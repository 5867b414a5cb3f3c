"""What every training shares: batches, divergence, and a model that is as it was before."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from support.recovery import config, packed, train


def test_global_batch_must_divide(llama: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--global-batch 5 is no multiple of --micro-batch 2"):
        train(llama, packed(), 1500, config(global_batch=5), tmp_path / "recovery")


def test_nan_loss_names_the_step(llama: PreTrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        llama.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="loss is nan at step 1 of"):
        train(llama, packed(), 1500, config(), tmp_path / "round-01" / "recovery")


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

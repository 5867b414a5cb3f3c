"""Reinforcement learning learns what is rewarded, and leaves the model as it was."""

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from ptl_fast.recovery.grpo import train as train_module
from ptl_fast.recovery.trainer import ExactCheckpoints
from support.recovery import grpo_config, problem_task


def test_learns_what_is_rewarded_and_leaves_all_else(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    before, parameters = copy.deepcopy(model), dict(model.named_parameters())
    settings = grpo_config(
        grpo_steps=10, reward_weights="accuracy=1", grpo_learning_rate=3e-2, checkpoint_minutes=9
    )
    details = train_module.train(model, problem_task(settings, folder)).details["grpo"]
    assert (details["steps"], details["rollouts"]) == (10, 80)
    assert sum(details["accuracy"][-3:]) / 3 > sum(details["accuracy"][:3]) / 3 + 0.2, details[
        "accuracy"
    ]
    assert details["always_zero"] == []
    assert model.config.to_dict() == before.config.to_dict()
    assert model.generation_config.to_dict() == before.generation_config.to_dict()
    assert not {"forward", "_is_accelerate_prepared"} & set(model.__dict__)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.training
    assert model.model_tags is None
    assert all(
        parameter is not parameters[name] and parameter.grad is None
        for name, parameter in model.named_parameters()
    )


def test_checkpoints_hold_every_weight() -> None:
    """What that means is tested beside the class."""
    assert issubclass(train_module.RolloutTrainer, ExactCheckpoints)


def test_kl_is_measured_from_where_the_round_began(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    """Not from the model whose name the config has: that one is not pruned."""
    model.config._name_or_path = "no/such-model"
    settings = grpo_config(grpo_kl=0.1, grpo_steps=2, checkpoint_minutes=9)
    details = train_module.train(model, problem_task(settings, folder)).details["grpo"]
    assert details["kl"][0] == pytest.approx(0, abs=1e-5)
    assert details["kl"][-1] > 1e-3

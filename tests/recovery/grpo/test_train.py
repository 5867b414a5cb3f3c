"""Reinforcement learning learns what is rewarded, and leaves the model as it was."""

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from ptl_fast.recovery.grpo import train as train_module
from support.recovery import grpo_config, grpo_task


def test_every_problem_comes_once_before_any_comes_twice() -> None:
    rows = [{"prompt": str(number)} for number in range(7)]
    order = [row["prompt"] for row in train_module._in_seeded_order(rows, 17, seed=4)]
    assert len(order) == 17
    assert set(order[:7]) == set(order[7:14]) == {row["prompt"] for row in rows}
    assert order[:7] != order[7:14]
    assert train_module.num_steps(70, grpo_config(grpo_steps=None, grpo_prompts=32).grpo) == 2


@pytest.mark.parametrize(("num_ranks", "expected"), [(1, (4, 8)), (2, (4, 4))])
def test_rollouts_are_split_by_tokens(
    num_ranks: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of 2 x 256 tokens holds five rollouts of 100, and four divide a rank's 16 or 32."""
    monkeypatch.setattr("ptl_fast.base.distributed.world_size", lambda: num_ranks)
    settings = grpo_config(
        micro_batch=2,
        sequence_length=256,
        grpo_prompts=8,
        grpo_prompt_tokens=60,
        grpo_response_tokens=40,
    )
    assert train_module.rollout_split(settings.grpo, 2 * 256) == expected
    settings.grpo.grpo_micro_batch = 20
    assert train_module.rollout_split(settings.grpo, 2 * 256)[0] == 16, (
        "the largest number up to 20 that divides a rank's rollouts"
    )
    monkeypatch.setattr("ptl_fast.base.distributed.world_size", lambda: 3)
    with pytest.raises(ValueError, match="do not divide among 3 ranks"):
        train_module.rollout_split(settings.grpo, 2 * 256)


def test_learns_what_is_rewarded_and_leaves_all_else(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    before, parameters = copy.deepcopy(model), dict(model.named_parameters())
    settings = grpo_config(
        grpo_steps=10, reward_weights="accuracy=1", grpo_learning_rate=3e-2, checkpoint_minutes=9
    )
    details = train_module.train(model, grpo_task(settings, folder)).details["grpo"]
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


def test_kl_is_measured_from_where_the_round_began(
    model: PreTrainedModel, folder: Path, digits: None
) -> None:
    """Not from the model whose name the config has: that one is not pruned."""
    model.config._name_or_path = "no/such-model"
    settings = grpo_config(grpo_kl=0.1, grpo_steps=2, checkpoint_minutes=9)
    details = train_module.train(model, grpo_task(settings, folder)).details["grpo"]
    assert details["kl"][0] == pytest.approx(0, abs=1e-5)
    assert details["kl"][-1] > 1e-3

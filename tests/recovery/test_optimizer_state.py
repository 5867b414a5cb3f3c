"""Adam's moments follow their neurons and layers, and training goes on from them."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.model.families import find_family
from ptl_fast.pruning import compact
from ptl_fast.pruning.plan import plan_layers
from ptl_fast.recovery import (
    optimizer_state,
)
from ptl_fast.recovery.task import (
    OptimizerState,
    TrainingOptions,
)
from support.models import make_model
from support.plans import layer_round, random_plan
from support.recovery import train_steps


def trained_moments(model: PreTrainedModel, folder: Path) -> OptimizerState:
    spent, _ = train_steps(model, folder, 4, TrainingOptions(keep_optimizer_state=True))
    assert spent.optimizer_state is not None
    return spent.optimizer_state


def test_moments_are_those_of_every_parameter(llama: PreTrainedModel, tmp_path: Path) -> None:
    taken = trained_moments(llama, tmp_path)
    assert taken.keys() == dict(llama.named_parameters()).keys()
    for name, parameter in llama.named_parameters():
        assert set(taken[name]) == {"exp_avg", "exp_avg_sq", "step"}
        assert taken[name]["exp_avg"].shape == parameter.shape
        assert taken[name]["step"] == 4
    again = optimizer_state.from_tensors(optimizer_state.to_tensors(taken))
    assert all(
        torch.equal(value, again[name][key])
        for name, state in taken.items()
        for key, value in state.items()
    )


@pytest.mark.parametrize("family_name", ["llama", "phi3", "qwen2"])
def test_moments_follow_their_neurons_and_layers(family_name: str) -> None:
    """Each moment is marked with its weight: after compaction the marks still fit, in matrices,
    fused ones and biases.
    """
    model = (
        make_model(family_name, mlp_bias=True)
        if family_name == "llama"
        else make_model(family_name)
    )
    family = find_family(model)
    state = {
        name: {
            "exp_avg": 2 * parameter.detach(),
            "exp_avg_sq": parameter.detach() ** 2,
            "step": torch.tensor(3.0),
        }
        for name, parameter in model.named_parameters()
    }
    compact.compact_(model, family, random_plan(model), state)
    step = layer_round(32, 3, number=2)
    compact.compact_(
        model, family, plan_layers(step, torch.tensor([3.0, 1.0, 4.0, 0.0, 2.0]), "x"), state
    )
    assert state.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name]["exp_avg"], 2 * parameter), name
        assert torch.equal(state[name]["exp_avg_sq"], parameter**2), name
        assert state[name]["step"] == 3


def test_kept_state_trains_as_if_neurons_were_only_silenced(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    """The second round, small with compacted moments, ends where the wide model with zeroed neurons
    and moments ends.
    """
    family, plan = find_family(llama), random_plan(llama)
    state = trained_moments(llama, tmp_path / "round-01")
    wide, wide_state = copy.deepcopy(llama), copy.deepcopy(state)
    compact.compact_(llama, family, plan, state)
    assert plan.kept_neurons is not None
    for layer, kept in enumerate(plan.kept_neurons):
        gone = [neuron for neuron in range(48) if neuron not in kept]
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            path = f"model.layers.{layer}.mlp.{name}.weight"
            for tensor in (
                wide.get_parameter(path).detach(),
                wide_state[path]["exp_avg"],
                wide_state[path]["exp_avg_sq"],
            ):
                tensor.index_fill_(dim, torch.tensor(gone), 0.0)
    cold = copy.deepcopy(llama)
    train_steps(llama, tmp_path / "small", 4, TrainingOptions(optimizer_state=state))
    train_steps(wide, tmp_path / "wide", 4, TrainingOptions(optimizer_state=wide_state))
    train_steps(cold, tmp_path / "cold", 4, TrainingOptions())
    compact.compact_(wide, family, plan)
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(parameter, wide.get_parameter(name), atol=1e-4, rtol=1e-3)
    assert (
        max(
            (parameter - cold.get_parameter(name)).abs().max()
            for name, parameter in llama.named_parameters()
        )
        > 3e-3
    )

"""The penalty of --anticipate is the sum of norms of what will go, and shrinks only that."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.model.families import find_family
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.recovery import (
    next_prune_penalty,
)
from ptl_fast.recovery.task import (
    TrainingOptions,
)
from support.models import make_model
from support.plans import random_plan
from support.recovery import train_steps


def norms(model: PreTrainedModel, plan: PruningPlan, kept: bool) -> Tensor:
    """L2 norms of the neurons that stay or go, computed layer by layer from the modules."""
    assert plan.kept_neurons is not None
    out = []
    for layer, indices in zip(model.model.layers, plan.kept_neurons, strict=True):
        mlp = layer.mlp
        chosen = (
            indices
            if kept
            else [neuron for neuron in range(mlp.gate_proj.out_features) if neuron not in indices]
        )
        for neuron in chosen:
            parts = (
                mlp.gate_proj.weight[neuron],
                mlp.up_proj.weight[neuron],
                mlp.down_proj.weight[:, neuron],
            )
            out.append(torch.cat(parts).norm())
    return torch.stack(out).detach()


@pytest.mark.parametrize("family_name", ["llama", "phi3"])
def test_penalty_is_the_sum_of_norms_of_what_will_go(family_name: str) -> None:
    model = make_model(family_name)
    plan = random_plan(model)
    compute = next_prune_penalty.penalty(model, find_family(model), plan.kept_neurons, 0.25)
    assert compute is not None
    value = compute()
    if (
        family_name == "phi3"
    ):  # its gate and up lie in one matrix; split them for the plain computation
        for layer in model.model.layers:
            layer.mlp.gate_proj, layer.mlp.up_proj = (
                torch.nn.Linear(32, 48),
                torch.nn.Linear(32, 48),
            )
            gate, up = layer.mlp.gate_up_proj.weight.detach().chunk(2)
            layer.mlp.gate_proj.weight.data, layer.mlp.up_proj.weight.data = gate, up
    assert value.item() == pytest.approx(
        0.25 * norms(model, plan, kept=False).sum().item(), rel=1e-5
    )


def test_neuron_of_zero_weights_has_no_nan_gradient(llama: PreTrainedModel) -> None:
    for parameter in llama.parameters():
        parameter.detach().zero_()
    compute = next_prune_penalty.penalty(
        llama, find_family(llama), random_plan(llama).kept_neurons, 1.0
    )
    assert compute is not None
    compute().backward()
    assert all(torch.isfinite(p.grad).all() for p in llama.parameters() if p.grad is not None)


def test_anticipated_neurons_shrink_and_the_others_do_not(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    """Against the same training without the penalty, which begins with the last quarter and is in
    the log from then on.
    """
    plan, plain = random_plan(llama), copy.deepcopy(llama)
    begins: list[bool] = []

    def begin() -> Callable[[], Tensor] | None:
        begins.append(True)
        return next_prune_penalty.penalty(llama, find_family(llama), plan.kept_neurons, 0.1)

    _, logs = train_steps(
        llama, tmp_path / "a", 16, TrainingOptions(make_penalty=begin, schedule_position=(40, 60))
    )
    _, plain_logs = train_steps(
        plain, tmp_path / "b", 16, TrainingOptions(schedule_position=(40, 60))
    )
    assert begins == [True]
    assert ["penalty" in log for log in logs] == [False] * 12 + [True] * 4
    assert not any("penalty" in log for log in plain_logs)
    # the micro-batches of a step add the penalty once, not once each: at the first such step the
    # weights are still the same
    assert logs[12]["loss"] - logs[12]["penalty"] == pytest.approx(plain_logs[12]["loss"], rel=1e-3)
    assert (norms(llama, plan, kept=False) < norms(plain, plan, kept=False)).double().mean() > 0.95
    assert norms(llama, plan, kept=True).mean().item() == pytest.approx(
        norms(plain, plan, kept=True).mean().item(), rel=0.02
    )

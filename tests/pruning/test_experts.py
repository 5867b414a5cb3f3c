"""A mixture of experts without neurons computes what the masked one does, and plain transformers
loads it.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.model.saved_model_check import structure_difference
from ptl_fast.model.widths import ffn_width
from ptl_fast.pruning.compact import compact_
from ptl_fast.pruning.plan import PruningPlan
from support.mixtures import EXPERT_WIDTH, TYPES, make_mixture
from support.numbers import ERRORS, relative_error

KEPT = EXPERT_WIDTH // 2


def plan_for(model: Any, num_ffns: int) -> PruningPlan:
    generator = torch.Generator().manual_seed(3)
    kept = [
        torch.randperm(EXPERT_WIDTH, generator=generator)[:KEPT].sort().values.tolist()
        for _ in range(num_ffns)
    ]
    return PruningPlan(
        round=1,
        kind="neurons",
        scorer="",
        width=KEPT,
        num_layers=model.config.num_hidden_layers,
        kept_neurons=kept,
    )


def mask(keeps_I: torch.Tensor, module: torch.nn.Module, args: tuple) -> tuple:
    return (args[0] * keeps_I,)


@pytest.mark.parametrize("model_type", TYPES)
def test_half_the_width_equals_the_masked_model(
    model_type: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_mixture(model_type)
    family = find_family(model)
    ffns = list(feed_forwards(model, family).values())
    plan = plan_for(model, len(ffns))
    assert plan.kept_neurons is not None
    handles = []
    for ffn, kept in zip(ffns, plan.kept_neurons, strict=True):
        keeps_I = torch.zeros(EXPERT_WIDTH).index_fill(0, torch.tensor(kept), 1.0)
        handles.append(ffn.down.register_forward_pre_hook(partial(mask, keeps_I)))
    with torch.no_grad():
        expected = model(input_ids).logits
        for handle in handles:
            handle.remove()
        compact_(model, family, plan)
        found = model(input_ids).logits
    assert relative_error(found, expected) < 10 * ERRORS[torch.float32]
    assert ffn_width(model.config) == KEPT
    assert structure_difference(model) is None
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids).logits, found)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss", "deepseek_v2"])
def test_optimizer_state_follows_the_neurons(model_type: str) -> None:
    model = make_mixture(model_type)
    family = find_family(model)
    # moments that are the weights themselves must stay equal to them
    state = {
        name: {"exp_avg": parameter.detach().clone(), "step": torch.tensor(3.0)}
        for name, parameter in model.named_parameters()
    }
    plan = plan_for(model, len(feed_forwards(model, family)))
    compact_(model, family, plan, state)
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name]["exp_avg"], parameter), name

"""A mixture without some experts computes what it does when no token can go to them, and plain
transformers loads it.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.families.unrouted import unrouted
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.model.routing import find_routed
from ptl_fast.model.saved_model_check import structure_difference
from ptl_fast.model.widths import num_experts
from ptl_fast.pruning.compact import compact_
from ptl_fast.pruning.plan import PruningPlan
from support.mixtures import ACTIVE, TYPES, make_mixture
from support.numbers import ERRORS, relative_error

# more than twice as many as a token goes to; of each of two groups three, and two of each
EXPERTS, KEPT = 6, [[0, 2, 3, 5], [1, 2, 4, 5], [0, 1, 3, 4]]


def plan_for(num_mixtures: int, num_layers: int, width: int) -> PruningPlan:
    return PruningPlan(
        round=1,
        kind="experts",
        scorer="",
        width=width,
        num_layers=num_layers,
        num_experts=len(KEPT[0]),
        kept_neurons=None,
        kept_experts=KEPT[:num_mixtures],
    )


@pytest.mark.parametrize("model_type", TYPES)
def test_fewer_experts_equal_the_model_that_cannot_choose_the_others(
    model_type: str, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_mixture(model_type, experts=EXPERTS)
    family = find_family(model)
    mixtures = find_routed(model, family.layers)
    ffns = feed_forwards(model, family)
    width = next(iter(ffns.values())).width
    plan = plan_for(len(mixtures), model.config.num_hidden_layers, width)
    assert plan.kept_experts is not None
    with torch.no_grad():
        before = model(input_ids).logits
        with unrouted(model, mixtures, plan.kept_experts):
            expected = model(input_ids).logits
        # or nothing would be tested
        assert relative_error(before, expected) > 1e-3
        compact_(model, family, plan)
        found = model(input_ids).logits
    assert relative_error(found, expected) < 10 * ERRORS[torch.float32]
    assert num_experts(model.config) == plan.num_experts
    assert model.config.num_experts_per_tok == ACTIVE
    assert structure_difference(model) is None
    # those that are pruned beside the router's experts stay
    assert len(feed_forwards(model, family)) == len(ffns) - 2 * len(mixtures)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids).logits, found)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_optimizer_state_follows_the_experts(model_type: str) -> None:
    model = make_mixture(model_type, experts=EXPERTS)
    family = find_family(model)
    # moments that are the weights themselves must stay equal to them
    state = {
        name: {"exp_avg": parameter.detach().clone(), "step": torch.tensor(3.0)}
        for name, parameter in model.named_parameters()
    }
    number = len(find_routed(model, family.layers))
    width = next(iter(feed_forwards(model, family).values())).width
    compact_(model, family, plan_for(number, model.config.num_hidden_layers, width), state)
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name]["exp_avg"], parameter), name

"""Experts that no token can go to are never run."""

import pytest
import torch

from benchmarks.families.unrouted import unrouted
from ptl_fast.model.routing import find_routed
from support.mixtures import make_mixture


@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v3"])
def test_no_token_goes_to_the_others(model_type: str, input_ids: torch.Tensor) -> None:
    model = make_mixture(model_type, experts=8)
    mixtures = find_routed(model, "model.layers")
    chosen, kept = [], [0, 1, 4, 7]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for routed in mixtures:
        stack = model.get_submodule(routed.stack)
        stack.register_forward_pre_hook(lambda module, args: chosen.append(args[1].flatten()))
    with torch.no_grad():
        model(input_ids)
        assert set(torch.cat(chosen).tolist()) == set(range(8))
        chosen.clear()
        with unrouted(model, mixtures, [kept] * len(mixtures)):
            model(input_ids)
    assert set(torch.cat(chosen).tolist()) == set(kept)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_router_that_is_not_seen_is_told(input_ids: torch.Tensor) -> None:
    model = make_mixture("mixtral")
    mixtures = find_routed(model, "model.layers")
    with pytest.raises(AssertionError, match="a router is no linear layer"):  # noqa: SIM117
        with unrouted(model, mixtures, [[0, 1]] * 3):
            pass

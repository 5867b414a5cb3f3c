"""Experts' scores equal their definition, computed another way in float64."""

import torch
from torch.nn.functional import linear

from ptl_fast.data.packing import pack
from ptl_fast.model.families import find_family
from ptl_fast.scoring.expert_scorers import EXPERT_SCORERS, by_layer
from ptl_fast.scoring.statistics import Statistics, collect
from support.mixtures import NUM_EXPERTS, make_mixture

TOKENS = pack([list(range(3, 34)), list(range(9, 30))], 32, 1, "documents")


def of_experts(tokens: list[int], norms: list[float]) -> Statistics:
    return Statistics(
        num_tokens=torch.tensor(8),
        square_LI=torch.zeros(len(tokens), 2),
        change_L3=torch.zeros(1, 3),
        tokens_U=torch.tensor(tokens),
        output_U=torch.tensor(norms, dtype=torch.float64),
    )


def test_scores_by_hand() -> None:
    taken = of_experts([4, 0, 2], [2.0, 0.0, 3.0])
    assert EXPERT_SCORERS["reap"].compute(taken, 0).tolist() == [0.5, 0.0, 1.5]
    assert EXPERT_SCORERS["output"].compute(taken, 0).tolist() == [2.0, 0.0, 3.0]
    assert EXPERT_SCORERS["frequency"].compute(taken, 0).tolist() == [4.0, 0.0, 2.0]
    first, again, other = (EXPERT_SCORERS["random"].compute(taken, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_reap_is_the_mean_of_weight_times_norm_over_an_experts_tokens() -> None:
    model = make_mixture("mixtral")
    family = find_family(model)
    scores = EXPERT_SCORERS["reap"].compute(collect(model, family, TOKENS, 1), 0)
    scores_ME = by_layer(model, family, scores)
    assert scores_ME.shape == (3, NUM_EXPERTS)
    block, taken = model.model.layers[0].mlp, list[torch.Tensor]()
    handle = block.register_forward_pre_hook(lambda module, args: taken.append(args[0].double()))
    with torch.no_grad():
        for ids in TOKENS.input_ids:
            counted = ids[: 31 if int(ids[0]) == 3 else 21]
            model(input_ids=counted[None])
    handle.remove()
    hidden_TH = torch.cat([each[0] for each in taken])
    top = linear(hidden_TH, block.gate.weight.double()).softmax(-1).topk(2)
    weight_T2 = top.values / top.values.sum(-1, keepdim=True)
    for expert in range(NUM_EXPERTS):
        token_S, place_S = torch.where(top.indices == expert)
        both = linear(hidden_TH[token_S], block.experts.gate_up_proj[expert].double())
        gate, up = both.chunk(2, -1)
        active = torch.nn.functional.silu(gate) * up
        norms_S = linear(active, block.experts.down_proj[expert].double()).norm(dim=-1)
        expected = (weight_T2[token_S, place_S] * norms_S).mean().detach()
        torch.testing.assert_close(scores_ME[0, expert], expected, rtol=1e-5, atol=1e-9)


def test_only_what_the_router_chooses_from_is_ranked() -> None:
    """Two shared experts a layer stand behind the four of the router."""
    model = make_mixture("deepseek_v2")
    places = torch.arange(12)
    found = by_layer(model, find_family(model), places)
    assert found.tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]

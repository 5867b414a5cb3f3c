"""What is counted of each expert equals its definition, computed another way in float64."""

import pytest
import torch
from torch.nn.functional import linear, silu, softmax

from ptl_fast.data.packing import pack
from ptl_fast.model.families import find_family
from ptl_fast.scoring.gram import GramMatrices, damped
from ptl_fast.scoring.ridge import DEFAULT_RIDGE, RIDGE
from ptl_fast.scoring.statistics import collect
from support.mixtures import ACTIVE, EXPERT_WIDTH, NUM_EXPERTS, make_mixture

DOCUMENTS = [list(range(3, 3 + length)) for length in (17, 40, 9, 30)]
TOKENS = pack(DOCUMENTS, 32, 1, "documents")


def first_layer_by_hand(model: torch.nn.Module) -> list[torch.Tensor]:
    """Of each expert of the first layer, the rows that enter its down projection, in float64."""
    block, taken = model.model.layers[0].mlp, list[torch.Tensor]()  # type: ignore[union-attr, index]
    handle = block.register_forward_pre_hook(lambda module, args: taken.append(args[0].double()))
    with torch.no_grad():
        for ids in DOCUMENTS:
            for piece in (ids[:32], ids[32:]):
                if piece:
                    model(input_ids=torch.tensor([piece]))  # type: ignore[operator]
    handle.remove()
    hidden_TH = torch.cat([each.flatten(0, 1) for each in taken])
    router_TE = softmax(linear(hidden_TH, block.gate.weight.double()), -1)
    top = router_TE.topk(ACTIVE)
    weights = top.values / top.values.sum(-1, keepdim=True)
    rows = []
    for index in range(NUM_EXPERTS):
        token_S, place_S = torch.where(top.indices == index)
        gate, up = linear(hidden_TH[token_S], block.experts.gate_up_proj[index].double()).chunk(
            2, -1
        )
        rows.append((silu(gate) * up * weights[token_S, place_S][:, None]).detach())
    return rows


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sums_counts_and_gram_matrices(batch_size: int) -> None:
    model = make_mixture("mixtral")
    family = find_family(model)
    grams = GramMatrices(model, family, TOKENS, batch_size)
    found = collect(model, family, TOKENS, batch_size, extra=frozenset({"sums"}), grams=grams)
    rows = first_layer_by_hand(model)
    down = model.model.layers[0].mlp.experts.down_proj.double()
    assert found.tokens_U is not None
    assert found.output_U is not None
    assert found.sum_LI is not None
    assert found.tokens_U[:NUM_EXPERTS].tolist() == [len(each) for each in rows]
    assert int(found.tokens_U.sum()) == ACTIVE * 3 * int(found.num_tokens)
    for index, (own_SI, gram_II) in enumerate(zip(rows, grams, strict=False)):
        close = {"rtol": 1e-5, "atol": 1e-9}
        torch.testing.assert_close(found.square_LI[index], own_SI.square().sum(0), **close)
        torch.testing.assert_close(found.sum_LI[index], own_SI.sum(0), rtol=1e-4, atol=1e-7)
        norms = linear(own_SI, down[index]).norm(dim=-1).sum()
        torch.testing.assert_close(found.output_U[index], norms.detach(), **close)
        # one that sees fewer tokens than it has neurons is held nearer to its own weights
        ridge = RIDGE if len(own_SI) >= EXPERT_WIDTH else DEFAULT_RIDGE
        torch.testing.assert_close(gram_II, damped(own_SI.T @ own_SI, ridge), rtol=1e-5, atol=1e-7)

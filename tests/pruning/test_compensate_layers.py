"""Folded layers equal least squares, and leave the residual stream nearer than plain dropping."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.data import packing
from ptl_fast.model.families import down_projections, feed_forwards, find_family
from ptl_fast.pruning import compensate_layers
from ptl_fast.pruning.compact import compact_
from ptl_fast.scoring import dropped_blocks
from support.least_squares import RIDGE, long_documents, ridge
from support.models import HIDDEN, WIDTH, make_model
from support.plans import layer_plan


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def stream(model: PreTrainedModel, tokens: packing.PackedTokens, layer: int) -> Tensor:
    """The residual stream after a layer, of the tokens that count."""
    found: list[Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda module, args, output: found.append(
            (output[0] if isinstance(output, tuple) else output)[tokens.mask]
        )
    )
    with torch.inference_mode():
        model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    handle.remove()
    return found[0]


def fold(
    model: PreTrainedModel, tokens: packing.PackedTokens, blocks: list[list[int]]
) -> list[compensate_layers.Fold]:
    family = find_family(model)
    ends = [compensate_layers.ends(block) for block in blocks]
    fits = dropped_blocks.block_fits(model, family, tokens, 2, ends, ridge=RIDGE)
    folds = [
        compensate_layers.Fold(layers=block, **found._asdict())
        for block, found in zip(blocks, fits, strict=True)
    ]
    compensate_layers.fold_(down_projections(model, family), folds)
    return folds


@pytest.mark.parametrize(
    ("dropped", "blocks"),
    [([], []), ([3], [[3]]), ([0, 1, 4], [[0, 1], [4]]), ([2, 3, 4], [[2, 3, 4]])],
)
def test_blocks_are_runs_of_consecutive_layers(dropped: list[int], blocks: list[list[int]]) -> None:
    assert compensate_layers.blocks_of(dropped) == blocks


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "qwen2", "qwen3"])
@pytest.mark.parametrize("block", [[1], [2, 3], [3, 4]])
def test_the_stream_is_as_near_to_what_it_was_as_least_squares_can_bring_it(
    family: str, block: list[int], tokens: packing.PackedTokens
) -> None:
    """torch's least squares on the tokens themselves, with the FFN's activations by hand."""
    model = make_model(family).double()
    before, last = compensate_layers.ends(block)
    target, plain = stream(model, tokens, last), stream(model, tokens, before)
    a_TI: list[torch.Tensor] = []
    down = feed_forwards(model, find_family(model))[str(before)].down
    handle = down.register_forward_pre_hook(lambda module, args: a_TI.append(args[0][tokens.mask]))
    stream(model, tokens, before)
    handle.remove()
    rows_TI = torch.cat([a_TI[0], ridge(a_TI[0])])
    added_TH = torch.cat([target - plain, torch.zeros(WIDTH, HIDDEN, dtype=torch.float64)])
    best_IH = torch.linalg.lstsq(rows_TI, added_TH).solution
    fold(model, tokens, [block])
    compact_(model, find_family(model), layer_plan(block))
    found = stream(model, tokens, before)
    torch.testing.assert_close(found, plain + a_TI[0] @ best_IH, rtol=1e-6, atol=1e-6)
    assert (found - target).norm() < 0.95 * (plain - target).norm()


def test_blocks_of_one_round_are_fitted_to_the_model_before_any_of_them_went(
    tokens: packing.PackedTokens,
) -> None:
    model = make_model("llama")
    together = copy.deepcopy(model)
    fold(together, tokens, [[1], [3, 4]])
    for block in ([1], [3, 4]):
        alone = copy.deepcopy(model)
        fold(alone, tokens, [block])
        name = f"model.layers.{block[0] - 1}.mlp.down_proj.weight"
        weights = [each.get_parameter(name) for each in (model, alone, together)]
        assert not torch.equal(weights[0], weights[1])
        torch.testing.assert_close(weights[1], weights[2], rtol=1e-6, atol=1e-7)


def test_layers_that_add_nothing_change_nothing(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    with torch.no_grad():
        llama.model.layers[2].self_attn.o_proj.weight.zero_()
        llama.model.layers[2].mlp.down_proj.weight.zero_()
    before = copy.deepcopy(llama.state_dict())
    (folded,) = fold(llama, tokens, [[2]])
    assert folded.made_up_for == 0
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


def test_what_is_not_compensated_says_why() -> None:
    why = "no layer stays before it"
    left_out = compensate_layers.Fold(layers=[0, 1], reason=why)
    assert left_out.to_json() == {
        "layers": [0, 1],
        "into": None,
        "ridge": None,
        "made_up_for": None,
        "reason": why,
    }
    folded = compensate_layers.Fold(
        layers=[3, 4], change_HI=torch.ones(2, 3), ridge=0.1, made_up_for=0.5
    )
    assert folded.to_json() == {
        "layers": [3, 4],
        "into": 2,
        "ridge": 0.1,
        "made_up_for": 0.5,
        "reason": None,
    }

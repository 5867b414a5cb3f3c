"""Compensated columns equal least squares, and the layer's output is off by the price."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ptl_fast.base import positive_definite
from ptl_fast.data import packing
from ptl_fast.data.batching import document_batches
from ptl_fast.model.families import down_projections, feed_forwards, find_family
from ptl_fast.pruning import compact
from ptl_fast.pruning import compensate as compensate_module
from ptl_fast.pruning.plan import plan_neurons
from ptl_fast.scoring import gram as gram_module
from ptl_fast.scoring import reconstruction
from ptl_kernels import matrix
from support.least_squares import RIDGE, activations, best_columns, gram, long_documents, projection
from support.models import make_model
from support.plans import neuron_round


@pytest.mark.parametrize(
    ("num_tokens", "width", "hidden"),
    [(200, 37, 11), (20, 50, 8)],
    ids=["T200-I37", "T20-I50-singular"],
)
def test_columns_equal_least_squares_on_the_tokens(
    num_tokens: int, width: int, hidden: int
) -> None:
    a_TI, down_HI = activations(num_tokens, width, 9, 0), projection(hidden, width)
    kept = list(range(0, width, 3))
    columns_HK = compensate_module.least_squares(gram(a_TI), down_HI, torch.tensor(kept))
    torch.testing.assert_close(
        columns_HK, best_columns(a_TI, down_HI, kept)[0], rtol=1e-6, atol=1e-6
    )


def test_columns_solved_in_fp32_lose_no_more_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    a_TI, down_HI, kept = activations(300, 90, 9, 0), projection(8, 90), list(range(0, 90, 3))
    a_TI[5, [0, 1, 6]] *= 1000
    monkeypatch.setattr(positive_definite, "NARROW", 10)
    columns_HK = compensate_module.least_squares(gram(a_TI), down_HI, torch.tensor(kept))
    best_HK, _ = best_columns(a_TI, down_HI, kept)
    off, best = (
        float((a_TI[:, kept] @ each.T - a_TI @ down_HI.T).norm()) for each in (columns_HK, best_HK)
    )
    assert off == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("compensated", [False, True])
def test_pruned_projections_are_those_that_pruning_leaves(
    llama: PreTrainedModel, compensated: bool
) -> None:
    """Zeros stand for the neurons that go, and the model itself stays as it is."""
    family = find_family(llama)
    ffns = list(feed_forwards(llama, family).values())
    kept = [sorted({layer, 5, 7, 30, 47 - layer}) for layer in range(len(ffns))]
    grams = list(gram_module.GramMatrices(llama, family, long_documents(), 2))
    before = [ffn.down.weight.clone() for ffn in ffns]
    pruned = compensate_module.pruned_projections(
        down_projections(llama, family), grams if compensated else None, kept
    )
    assert all(torch.equal(ffn.down.weight, old) for ffn, old in zip(ffns, before, strict=True))
    if compensated:
        compensate_module.compensate_(down_projections(llama, family), grams, kept)
    for ffn, weight_HI, kept_K in zip(ffns, pruned, kept, strict=True):
        assert torch.equal(weight_HI[:, kept_K], ffn.down.weight[:, kept_K])
        gone = [neuron for neuron in range(48) if neuron not in kept_K]
        assert not weight_HI[:, gone].any()


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def first_outputs(model: PreTrainedModel, tokens: packing.PackedTokens) -> Tensor:
    """The first FFN's output on all tokens that count: its input does not depend on what was
    pruned.
    """
    found: list[Tensor] = []
    ffn = next(iter(feed_forwards(model, find_family(model)).values()))
    handle = ffn.down.register_forward_hook(
        lambda module, args, output: found.append(output[tokens.mask])
    )
    with torch.inference_mode():
        model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    handle.remove()
    return found[0]


def prune(
    model: PreTrainedModel,
    tokens: packing.PackedTokens,
    width: int,
    compensate: bool,
    protected: packing.PackedTokens | None = None,
    share: float = 0.0,
) -> float:
    """Return what the first layer's dearest removed neuron was priced at."""
    family = find_family(model)
    step = neuron_round(width, 5)
    grams = gram_module.GramMatrices(model, family, tokens, 2, protected, share, ridge=RIDGE)
    price_LI = reconstruction.prices(grams)
    plan = plan_neurons(step, price_LI, None, "reconstruction")
    assert plan.kept_neurons is not None
    if compensate:
        compensate_module.compensate_(grams.downs, grams, plan.kept_neurons)
    compact.compact_(model, family, plan)
    return float(price_LI[0].sort().values[-width - 1])


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "qwen2"])
def test_a_compensated_layer_is_off_by_the_price_and_otherwise_by_more(
    family: str, tokens: packing.PackedTokens
) -> None:
    before = first_outputs(make_model(family), tokens)
    off = {}
    for compensate in (True, False):
        model = make_model(family)
        price = prune(model, tokens, 24, compensate)
        off[compensate] = float((first_outputs(model, tokens) - before).norm())
    assert off[True] == pytest.approx(price, rel=1e-3)
    assert off[False] > 1.05 * price


def test_protected_output_changes_less(tokens: packing.PackedTokens) -> None:
    generator = torch.Generator().manual_seed(6)
    protected = packing.pack([torch.randint(2, 384, (200,), generator=generator).tolist()], 96, 1)
    before, off = first_outputs(make_model("llama"), protected), []
    for share in (0.0, 0.5, 0.9):
        model = make_model("llama")
        prune(model, tokens, 24, True, protected, share)
        off.append(float((first_outputs(model, protected) - before).norm()))
    assert off[0] > 1.05 * off[1] > 1.05 * off[2]


def test_nothing_is_left_on_the_model(llama: PreTrainedModel, tokens: packing.PackedTokens) -> None:
    llama.train()
    modes = []
    llama.model.layers[0].register_forward_pre_hook(
        lambda module, args: modes.append(module.training)
    )
    prune(llama, tokens, 24, True)
    llama.model.layers[0]._forward_pre_hooks.clear()
    assert llama.training
    assert not any(modes), "dropout would be in the prices"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())
    assert all(
        parameter.requires_grad and parameter.dtype == torch.float32
        for parameter in llama.parameters()
    )


@pytest.mark.parametrize("model_type", ["gpt2", "phi"])
def test_the_bias_takes_part_in_the_least_squares(model_type: str) -> None:
    """Compared with a fit of columns and bias to the layer's own inputs and outputs."""
    shape = {"vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    width = {"gpt2": {"n_inner": 24}, "phi": {"intermediate_size": 24}}[model_type]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **shape, **width, max_position_embeddings=512)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    family, tokens = find_family(model), long_documents()
    ffns = list(feed_forwards(model, family).values())
    seen: list[Tensor] = []
    handle = ffns[0].down.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].flatten(0, -2).double())
    )
    grams = gram_module.GramMatrices(model, family, tokens, len(tokens), ridge=1e-12)
    batches = list(document_batches(model, tokens, len(tokens), ""))
    list(grams)
    handle.remove()
    activations_TI = torch.cat(
        [each[batch.mask.flatten()] for each, batch in zip(seen, batches, strict=True)]
    )
    kept = list(range(0, 24, 2))
    with torch.no_grad():
        output_TH = activations_TI @ matrix(ffns[0].down).double().T + ffns[0].down.bias.double()
        probe = compensate_module.pruned_projections(grams.downs, grams, [kept] * 2)
        biases = compensate_module.pruned_biases(grams.downs, probe, grams.means)
        compensate_module.compensate_(grams.downs, grams, [kept] * 2, grams.means)
        ones = torch.ones(len(activations_TI), 1, dtype=torch.float64)
        inputs = torch.cat([activations_TI[:, kept], ones], 1)
        best = torch.linalg.lstsq(inputs, output_TH).solution
        ours_TH = activations_TI[:, kept] @ matrix(ffns[0].down)[:, kept].double().T
        ours_TH += ffns[0].down.bias.double()
    error, least = (float((each - output_TH).square().sum()) for each in (ours_TH, inputs @ best))
    assert error == pytest.approx(least, rel=1e-3)
    for ffn, weight_HI, bias_H in zip(ffns, probe, biases, strict=True):
        assert torch.equal(matrix(ffn.down)[:, kept], weight_HI[:, kept])
        assert torch.equal(ffn.down.bias, bias_H)

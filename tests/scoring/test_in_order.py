"""Columns fitted layer by layer are least squares on whole forward passes of the pruned model."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.data import packing
from ptl_fast.model.families import decoder_layers, feed_forwards, find_family
from ptl_fast.pruning import compensate
from ptl_fast.scoring import in_order
from ptl_fast.scoring.gram import GramMatrices
from support.least_squares import RIDGE, long_documents
from support.models import FAMILIES, NUM_LAYERS, WIDTH, make_model

KEPT = [sorted({layer, 5, 7, 11, 30, 47 - layer, *range(14, 26)}) for layer in range(NUM_LAYERS)]


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def fit(
    model: PreTrainedModel, *texts: tuple[packing.PackedTokens, float], batch: int = 2
) -> list[Tensor]:
    family = find_family(model)
    return in_order.columns_in_order(
        model, family, texts, batch, KEPT, [RIDGE] * len(feed_forwards(model, family))
    )


@contextmanager
def watching(
    model: PreTrainedModel, layer: int, tokens: packing.PackedTokens
) -> Iterator[dict[str, Tensor]]:
    """A whole forward pass' activations, output of the down projection, and stream, by hand."""
    family, found = find_family(model), {}

    def keep(name: str, output: Tensor | tuple) -> None:
        found[name] = (output[0] if isinstance(output, tuple) else output)[tokens.mask].double()

    down = feed_forwards(model, family)[str(layer)].down
    handles = [
        down.register_forward_hook(lambda module, args, output: keep("a", args[0])),
        down.register_forward_hook(lambda module, args, output: keep("out", output)),
        decoder_layers(model, family)[layer].register_forward_hook(
            lambda module, args, output: keep("stream", output)
        ),
    ]
    with torch.inference_mode():
        model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    yield found


def expected(
    original: PreTrainedModel, pruned: PreTrainedModel, layer: int, tokens: packing.PackedTokens
) -> Tensor:
    """Torch's least squares for one layer; earlier layers of ``pruned`` are so already."""
    down = feed_forwards(original, find_family(original))[str(layer)].down
    with watching(original, layer, tokens) as was, watching(pruned, layer, tokens) as now:
        target_TH = was["stream"] - (now["stream"] - now["out"])
        # these normalise the output before they add it
        if original.config.model_type == "gemma2":
            target_TH = was["out"]
    if down.bias is not None:
        target_TH = target_TH - down.bias.double()
    root = (RIDGE * now["a"].square().sum() / WIDTH).sqrt()
    rows_TK = torch.cat([now["a"][:, KEPT[layer]], root * torch.eye(len(KEPT[layer])).double()])
    drawn_KH = root * down.weight[:, KEPT[layer]].T.double()
    return torch.linalg.lstsq(rows_TK, torch.cat([target_TH, drawn_KH])).solution.T


@pytest.mark.parametrize("family", [*FAMILIES, "llama with biases"])
def test_each_layer_is_fitted_on_what_the_pruned_layers_before_it_give(
    family: str, tokens: packing.PackedTokens
) -> None:
    overrides = {"mlp_bias": True} if family == "llama with biases" else {}
    name = family if family in FAMILIES else "llama"
    model = make_model(name, **overrides).double()
    before = copy.deepcopy(model.state_dict())
    found = fit(model, (tokens, 1.0))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    pruned = copy.deepcopy(model)
    for layer, ffn in enumerate(feed_forwards(pruned, find_family(pruned)).values()):
        torch.testing.assert_close(
            found[layer], expected(model, pruned, layer, tokens), rtol=1e-4, atol=1e-6
        )
        with torch.no_grad():
            ffn.down.weight.zero_()
            ffn.down.weight[:, KEPT[layer]] = found[layer]


def test_the_first_layer_is_fitted_as_on_the_originals_inputs_and_later_ones_are_not(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    model = llama.double()
    grams = GramMatrices(model, find_family(model), tokens, 2, ridge=RIDGE)
    first, second, *_ = (
        compensate.least_squares(gram_II, down.weight_HI, torch.tensor(kept))
        for gram_II, down, kept in zip(grams, grams.downs, KEPT, strict=True)
    )
    found = fit(model, (tokens, 1.0))
    torch.testing.assert_close(found[0], first, rtol=1e-4, atol=1e-6)
    assert (found[1] - second).norm() > 0.01 * second.norm()


def test_the_stream_is_nearer_to_the_originals(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    """Which is what it is for; on the tokens that it is fitted to."""
    model, family = llama.double(), find_family(llama)
    grams = GramMatrices(model, family, tokens, 2, ridge=RIDGE)
    together = [
        compensate.least_squares(gram_II, down.weight_HI, torch.tensor(kept))
        for gram_II, down, kept in zip(grams, grams.downs, KEPT, strict=True)
    ]
    errors = []
    with watching(model, NUM_LAYERS - 1, tokens) as was:
        for columns in (together, fit(model, (tokens, 1.0))):
            pruned = copy.deepcopy(model)
            for ffn, kept, column_HK in zip(
                feed_forwards(pruned, family).values(), KEPT, columns, strict=True
            ):
                with torch.no_grad():
                    ffn.down.weight.zero_()
                    ffn.down.weight[:, kept] = column_HK
            with watching(pruned, NUM_LAYERS - 1, tokens) as now:
                errors.append(float((now["stream"] - was["stream"]).square().sum()))
    assert errors[1] < 0.9 * errors[0]


def test_weights_batches_and_texts_do_not_matter_but_by_their_sums(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    model = llama.double()
    once = fit(model, (tokens, 1.0))
    half = len(tokens) // 2
    parts = [tokens.rows(slice(half)), tokens.rows(slice(half, None))]
    for other in (
        fit(model, (tokens, 1.0), batch=1),
        fit(model, (tokens, 0.25), (tokens, 0.75)),
        fit(model, *((part, 1.0) for part in parts)),
    ):
        for one, two in zip(once, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_a_failure_leaves_the_model_as_it_was(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    before = copy.deepcopy(llama.state_dict())
    layers = decoder_layers(llama, find_family(llama))
    calls = []

    def fail(module: torch.nn.Module, args: tuple) -> None:
        calls.append(args)
        # the first call is the pass that asks what layers return; later ones walk the layers
        if len(calls) > 2:
            raise RuntimeError("out of memory")

    hook = layers[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(llama, (tokens, 1.0))
    hook.remove()
    assert all(torch.equal(value, before[key]) for key, value in llama.state_dict().items())
    assert not any("forward" in vars(layer) for layer in layers)

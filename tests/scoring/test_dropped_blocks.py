"""What a block of layers adds to the residual stream, by least squares from the activations before
it.
"""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.data import packing
from ptl_fast.model.families import decoder_layers, feed_forwards, find_family
from ptl_fast.scoring import dropped_blocks
from ptl_fast.scoring import gram as gram_module
from ptl_fast.scoring.ridge import DEFAULT_RIDGE, RIDGES
from support.least_squares import RIDGE, activations, long_documents, projection, ridge
from support.models import FAMILIES, make_model

BLOCKS = [(0, 2), (3, 4)]


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def seen(
    model: PreTrainedModel, tokens: packing.PackedTokens, before: int, last: int
) -> tuple[Tensor, Tensor]:
    """Activations before the block and what it adds, of the tokens that count, by hand."""
    family, found = find_family(model), {}
    layers = decoder_layers(model, family)

    def keep(name: str, output: Tensor | tuple) -> None:
        found[name] = (output[0] if isinstance(output, tuple) else output)[tokens.mask].double()

    down = feed_forwards(model, family)[str(before)].down
    handles = [
        down.register_forward_pre_hook(lambda module, args: keep("a", args[0])),
        layers[before].register_forward_hook(lambda module, args, output: keep("h", output)),
        layers[last].register_forward_hook(lambda module, args, output: keep("last", output)),
    ]
    with torch.inference_mode():
        model(input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found["a"], found["last"] - found["h"]


@pytest.mark.parametrize("blocks_that_fit", [2, 1])
def test_changes_are_least_squares_on_all_tokens_that_count(
    llama: PreTrainedModel,
    tokens: packing.PackedTokens,
    monkeypatch: pytest.MonkeyPatch,
    blocks_that_fit: int,
) -> None:
    assert not tokens.mask.all()
    model = llama.double()
    monkeypatch.setattr(gram_module, "num_at_once", lambda *_: blocks_that_fit)
    fits = dropped_blocks.block_fits(model, find_family(model), tokens, 2, BLOCKS, ridge=RIDGE)
    for fit, block in zip(fits, BLOCKS, strict=True):
        a_TI, d_TH = seen(model, tokens, *block)
        rows_TI = torch.cat([a_TI, ridge(a_TI)])
        target_TH = torch.cat([d_TH, torch.zeros(48, 32, dtype=torch.float64)])
        best_HI = torch.linalg.lstsq(rows_TI, target_TH).solution.T
        torch.testing.assert_close(fit.change_HI, best_HI, rtol=1e-6, atol=1e-6)


def random_sums(num_tokens: int, seed: int) -> tuple[dropped_blocks.Sums, Tensor, Tensor]:
    """Sums of tokens whose d follows from their a, but for noise."""
    a_TI, mixed = activations(num_tokens, 40, 12, seed), projection(7, 40)
    d_TH = a_TI @ mixed.T + 0.5 * activations(num_tokens, 7, 7, seed + 100)
    return dropped_blocks.Sums(a_TI.T @ a_TI, d_TH.T @ a_TI, d_TH.square().sum()), a_TI, d_TH


def test_the_ridge_is_the_one_that_errs_least_on_tokens_set_aside() -> None:
    """Of 30 tokens and 40 neurons, so that a small one learns them by heart."""
    sums, a_TI, d_TH = random_sums(30, 0)
    held_out, held_TI, held_TH = random_sums(50, 1)

    def change(a_TI: Tensor, d_TH: Tensor, ridge: float) -> Tensor:
        gram_II = a_TI.T @ a_TI
        eye = torch.eye(40, dtype=torch.float64) * ridge * gram_II.diagonal().mean()
        return torch.linalg.solve(gram_II + eye, a_TI.T @ d_TH).T

    errors = {
        each: (held_TI @ change(a_TI, d_TH, each).T - held_TH).square().sum() for each in RIDGES
    }
    best = min(errors, key=lambda each: float(errors[each]))
    found = dropped_blocks.fit(sums, held_out, None)
    assert found.ridge == best > RIDGES[0]
    share = 1 - float(errors[best] / held_TH.square().sum())
    assert found.made_up_for == pytest.approx(share, rel=1e-5)
    together = change(torch.cat([a_TI, held_TI]), torch.cat([d_TH, held_TH]), best)
    torch.testing.assert_close(found.change_HI, together)
    assert dropped_blocks.fit(sums, held_out, 0.3).ridge == 0.3


def test_what_helps_no_token_set_aside_is_left_out() -> None:
    sums, held_out = random_sums(30, 0)[0], random_sums(50, 1)[0]
    against = held_out._replace(cross_HI=-held_out.cross_HI)
    found = dropped_blocks.fit(sums, against, None)
    assert found.made_up_for == 0
    assert not found.change_HI.any()


def test_a_corpus_of_one_sequence_sets_nothing_aside(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    one = tokens.rows(slice(1))
    rest, aside = dropped_blocks.set_aside(one)
    assert rest is one
    assert aside is None
    (found,) = dropped_blocks.block_fits(llama, find_family(llama), one, 2, [(1, 2)])
    assert found.ridge == DEFAULT_RIDGE
    assert 0 < found.made_up_for < 1


def test_every_sequence_is_fitted_to_or_set_aside() -> None:
    ids = torch.arange(20 * 4).view(20, 4)
    corpus = packing.PackedTokens(ids, ids % 4, torch.ones_like(ids, dtype=torch.bool))
    rest, aside = dropped_blocks.set_aside(corpus)
    assert aside is not None
    assert aside.input_ids[:, 0].tolist() == [0, 8 * 4, 16 * 4]
    together = torch.cat([rest.input_ids, aside.input_ids])[:, 0]
    assert sorted(together.tolist()) == ids[:, 0].tolist()


def test_protected_text_has_its_share_of_the_weight(
    llama: PreTrainedModel, tokens: packing.PackedTokens
) -> None:
    generator = torch.Generator().manual_seed(6)
    protected = packing.pack([torch.randint(2, 384, (120,), generator=generator).tolist()], 96, 1)
    model, family = llama.double(), find_family(llama)
    (found,) = dropped_blocks.block_fits(
        model, family, tokens, 2, [(1, 2)], protected, 0.25, ridge=RIDGE
    )
    weight = 0.25 * tokens.num_tokens / protected.num_tokens
    parts = [(*seen(model, tokens, 1, 2), 0.75), (*seen(model, protected, 1, 2), weight)]
    a_TI, d_TH = (torch.cat([part[place] * part[2] ** 0.5 for part in parts]) for place in (0, 1))
    expected = dropped_blocks.Sums(a_TI.T @ a_TI, d_TH.T @ a_TI, d_TH.square().sum()).solve(RIDGE)
    torch.testing.assert_close(found.change_HI, expected)


def test_nothing_is_left_on_the_model(llama: PreTrainedModel, tokens: packing.PackedTokens) -> None:
    llama.train()
    family = find_family(llama)
    dropped_blocks.block_fits(llama, family, tokens, 2, BLOCKS)
    dropped_blocks.ffn_adds_to_stream(llama, family, 1, tokens)
    assert llama.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_gemma2_changes_what_the_ffn_adds(
    family: str, dtype: torch.dtype, tokens: packing.PackedTokens
) -> None:
    model = make_model(family).to(dtype)
    adds = [
        dropped_blocks.ffn_adds_to_stream(model, find_family(model), layer, tokens)
        for layer in range(model.config.num_hidden_layers)
    ]
    assert adds == [family != "gemma2"] * 5

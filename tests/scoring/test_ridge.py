"""The ridge of the least squares is the one that serves held-out tokens best."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptl_fast.data.batching import document_batches
from ptl_fast.model.families import find_family
from ptl_fast.scoring import gram as gram_module
from ptl_fast.scoring.gram import GramMatrices, damped
from ptl_fast.scoring.ridge import (
    DEFAULT_RIDGE,
    RIDGES,
    TRIAL_KEEP,
    Choice,
    choose,
    in_words,
    set_aside,
    tensors,
)
from support.least_squares import many_documents

WIDTH, HIDDEN = 40, 12


def draw(num_tokens: int, noise: float, seed: int) -> Tensor:
    """Activations in 8 common directions, with noise of each neuron's own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    common = torch.randn(num_tokens, 8, generator=generator).double() @ mixing
    return common + noise * torch.randn(num_tokens, WIDTH, generator=generator).double()


def down() -> Tensor:
    return torch.randn(HIDDEN, WIDTH, generator=torch.Generator().manual_seed(2)).double()


def twin(fitted_TI: Tensor, held_TI: Tensor, down_HI: Tensor, ridge: float) -> float:
    """Error on the held-out tokens, by torch's least squares on rows that stand for the ridge."""
    mean_square = fitted_TI.square().sum(0).mean()
    rows_TI = torch.cat([fitted_TI, (ridge * mean_square).sqrt() * torch.eye(WIDTH).double()])
    own = fitted_TI.square().sum(0) * down_HI.square().sum(0)
    kept = own.argsort(descending=True)[: round(TRIAL_KEEP * WIDTH)]
    solution = torch.linalg.lstsq(rows_TI[:, kept], rows_TI @ down_HI.T).solution
    output = held_TI @ down_HI.T
    return float((output - held_TI[:, kept] @ solution).square().sum() / output.square().sum())


@pytest.mark.parametrize("noise", [0.03, 1.0])
def test_the_chosen_ridge_errs_least_on_the_tokens_set_aside(noise: float) -> None:
    fitted, held = draw(60, noise, 3), draw(30, noise, 4)
    everything = torch.cat([fitted, held])
    choice = choose(everything.T @ everything, down(), held)
    errors = {ridge: twin(fitted, held, down(), ridge) for ridge in RIDGES}
    assert choice.ridge == min(errors, key=errors.__getitem__)
    assert choice.refitted == pytest.approx(min(errors.values()), rel=1e-6)
    assert choice.refitted < choice.plain


def test_few_noisy_tokens_want_a_larger_ridge_than_many_clean_ones() -> None:
    def chosen(num_tokens: int, noise: float) -> float:
        everything = draw(num_tokens, noise, 3)
        held = everything[: num_tokens // 4]
        return choose(everything.T @ everything, down(), held).ridge

    assert chosen(40, 1.0) > chosen(20000, 0.03)


def test_a_rank_without_held_out_tokens_takes_part() -> None:
    gram = draw(100, 0.1, 3)
    choice = choose(gram.T @ gram, down(), torch.zeros(0, WIDTH))
    assert choice.ridge in RIDGES
    assert (choice.refitted, choice.plain) == (0.0, 0.0)


def test_an_ffn_that_is_off_has_a_positive_definite_matrix() -> None:
    zero = torch.zeros(WIDTH, WIDTH).double()
    assert torch.linalg.cholesky_ex(damped(zero.clone(), 0.1)).info == 0
    assert isinstance(choose(zero, down(), torch.zeros(5, WIDTH)), Choice)


def test_every_layer_has_its_own_and_the_matrices_have_all_tokens(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where not all layers fit in memory at once."""
    tokens, family = many_documents(), find_family(llama)
    plain = list(GramMatrices(llama, family, tokens, 2, ridge=0.0))
    for layers_that_fit in (5, 2):
        monkeypatch.setattr(gram_module, "num_at_once", lambda *_, fits=layers_that_fit: fits)
        grams = GramMatrices(llama, family, tokens, 2, ridge=None)
        taken = list(grams)
        assert sorted(grams.choices) == list(range(5))
        for layer, (gram_II, plain_II) in enumerate(zip(taken, plain, strict=True)):
            expected = damped(plain_II.clone(), grams.choices[layer].ridge)
            torch.testing.assert_close(gram_II, expected, rtol=1e-6, atol=1e-9)
    assert {each.ridge for each in grams.choices.values()} <= set(RIDGES)
    assert all(each.refitted > 0 for each in grams.choices.values()), "tokens were set aside"


def test_whole_documents_are_set_aside_in_whatever_batches_they_come(
    llama: PreTrainedModel,
) -> None:
    tokens = many_documents()

    def aside(batch_size: int) -> set[tuple[int, ...]]:
        found = set()
        for batch in document_batches(llama, tokens, batch_size, ""):
            chosen = set_aside(batch, tokens.num_counted)
            assert torch.equal(chosen.any(1)[:, None] & batch.mask, chosen)
            rows = zip(batch.inputs["input_ids"], batch.mask, strict=True)
            found |= {
                tuple(ids[mask].tolist())
                for (ids, mask), is_aside in zip(rows, chosen.any(1), strict=True)
                if is_aside
            }
        return found

    assert 1 < len(aside(1)) < 15
    assert aside(1) == aside(3)


@pytest.mark.parametrize("held", [0, 100])
def test_without_tokens_set_aside_or_left_the_ridge_is_the_default(held: int) -> None:
    everything = draw(100, 0.1, 3)
    choice = choose(everything.T @ everything, down(), everything[:held])
    assert choice == Choice(DEFAULT_RIDGE, 0.0, 0.0)


def test_choices_are_kept_by_layer_and_said_in_one_line() -> None:
    choices = {1: Choice(0.3, 0.2, 0.4), 0: Choice(0.01, 0.1, 0.2)}
    kept = {name: each.tolist() for name, each in tensors(choices).items()}
    assert kept == {
        "ridge_L": [0.01, 0.3],
        "held_out_refitted_L": [0.1, 0.2],
        "held_out_plain_L": [0.2, 0.4],
    }
    said = in_words(choices)
    assert said.startswith("ridge 0.01 to 0.3,")
    assert "off by 15.00% of their energy, 30.00% without" in said
    assert (tensors({}), in_words({})) == ({}, "")

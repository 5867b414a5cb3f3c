"""Prices equal plain least squares in float64, and what goes is what the others can say."""

import pytest
import torch

from ptl_fast.base import positive_definite
from ptl_fast.scoring import reconstruction
from support.least_squares import activations, best_columns, gram, projection


@pytest.mark.parametrize(("width", "chunk"), [(37, 32), (100, 7)], ids=["one-by-one", "in-chunks"])
def test_price_is_how_far_the_output_is_off_without_all_cheaper_neurons(
    width: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "CHUNK", chunk)
    a_TI, down_HI = activations(300, width, 12, 1), projection(10, width)
    price_I = reconstruction.eliminate(gram(a_TI), down_HI)
    order = price_I.argsort()
    for num_gone in (1, width // 3, width // 2, width - 1):
        kept = sorted(order[num_gone:].tolist())
        off = best_columns(a_TI, down_HI, kept)[1]
        assert float(price_I[order[num_gone - 1]]) == pytest.approx(off, rel=1e-5)


def test_one_by_one_removes_what_then_costs_least() -> None:
    """Brute force over every choice of the next neuron, to the last."""
    width = 9
    a_TI, down_HI = activations(60, width, 4, 2), projection(5, width)
    left, expected = list(range(width)), []
    while len(left) > 1:
        cost = {
            each: best_columns(a_TI, down_HI, [other for other in left if other != each])[1]
            for each in left
        }
        expected.append(min(cost, key=cost.__getitem__))
        left.remove(expected[-1])
    assert reconstruction.eliminate(gram(a_TI), down_HI).argsort().tolist() == [*expected, *left]


def test_a_wide_matrix_is_updated_in_blocks_to_the_same_prices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_TI, down_HI = activations(300, 100, 12, 4), projection(10, 100).double()
    gram_II, before = gram(a_TI), down_HI.clone()
    whole = reconstruction.eliminate(gram_II, down_HI)
    monkeypatch.setattr(reconstruction, "WHOLE", 0)
    # seven rows of a hundred, and more of what is left; the hidden size is no multiple of either
    monkeypatch.setattr(reconstruction, "BLOCK", 700)
    blocked = reconstruction.eliminate(gram_II, down_HI)
    torch.testing.assert_close(blocked, whole, rtol=1e-9, atol=0)
    # both work in place, in memory of their own
    assert torch.equal(gram_II, gram(a_TI))
    assert torch.equal(down_HI, before)


def test_a_loud_neuron_that_two_others_say_together_goes_first() -> None:
    a_TI = activations(100, 12, 12, 3)
    a_TI[:, 5] = 10 * (a_TI[:, 0] + a_TI[:, 7])
    down_HI = projection(6, 12)
    assert a_TI.square().sum(0).argmax() == 5
    assert reconstruction.eliminate(gram(a_TI), down_HI).argmin() in (0, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wide_matrix_is_updated_seldom_and_in_its_working_type_to_the_same_choice(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    a_TI, down_HI = activations(400, 301, 12, 5), projection(10, 301)
    a_TI[3, [1, 40, 200]] *= 1000
    narrow = reconstruction.eliminate(gram(a_TI), down_HI)
    monkeypatch.setattr(positive_definite, "NARROW", 10)
    monkeypatch.setattr(positive_definite, "working_type", lambda width, device: dtype)
    wide = reconstruction.eliminate(gram(a_TI), down_HI)
    # a massive neuron's own price, when those like it have gone, is the least exact
    tolerance = 1e-9 if dtype == torch.float64 else 5e-2
    torch.testing.assert_close(wide, narrow, rtol=tolerance, atol=0)
    agreeing = set(wide.argsort()[100:].tolist()) & set(narrow.argsort()[100:].tolist())
    assert len(agreeing) >= 0.99 * 201

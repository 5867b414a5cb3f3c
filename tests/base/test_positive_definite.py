"""In fp32, inverses and solutions are those of fp64 also with massive neurons, or it is said."""

import pytest
import torch
from torch import Tensor

from ptl_fast.base import positive_definite

WIDTH = 150


def gram(ridge: float) -> Tensor:
    """Fewer tokens than neurons, and three neurons a thousand times as loud on a single token."""
    generator = torch.Generator().manual_seed(1)
    a_TI = torch.randn(100, WIDTH, generator=generator).double()
    a_TI[7, [3, 50, 51]] *= 1000
    gram_II = a_TI.T @ a_TI
    gram_II.diagonal().add_(ridge)
    return gram_II


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positive_definite, "NARROW", 10)


def inverse(gram_II: Tensor) -> positive_definite.Inverse:
    working_type = positive_definite.working_type(len(gram_II), gram_II.device)
    return positive_definite.inverse(gram_II, working_type)


def unscaled(found: positive_definite.Inverse) -> Tensor:
    result_II = torch.full((WIDTH, WIDTH), torch.nan, dtype=torch.float64)
    scaled = found.scale_I[:, None] * found.matrix_II.double() * found.scale_I
    result_II[found.order_I[:, None], found.order_I] = scaled
    return result_II


def test_a_narrow_matrix_is_inverted_in_fp64_in_its_own_order() -> None:
    gram_II = gram(1.0)
    found = inverse(gram_II)
    assert found.matrix_II.dtype == torch.float64
    assert torch.equal(found.order_I, torch.arange(WIDTH))
    assert torch.equal(found.scale_I, torch.ones(WIDTH).double())
    torch.testing.assert_close(found.matrix_II @ gram_II, torch.eye(WIDTH).double())


def test_an_inverse_in_fp32_is_right_with_massive_neurons(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    gram_II = gram(1.0)
    found, exact_II = inverse(gram_II), torch.linalg.inv(gram_II)
    assert found.matrix_II.dtype == torch.float32
    assert found.matrix_II.is_contiguous()
    scale_I = exact_II.diagonal().rsqrt()
    error_II = (unscaled(found) - exact_II) * scale_I[:, None] * scale_I
    assert float(error_II.abs().max()) < 1e-4
    assert not capsys.readouterr().out
    # as a whole, fp32 does not do
    plain_II = torch.linalg.inv(gram_II.float()).double()
    assert float(((plain_II - exact_II) * scale_I[:, None] * scale_I).abs().max()) > 1e-2


def test_a_solution_in_fp32_is_right_with_massive_neurons(narrow: None) -> None:
    gram_II = gram(1.0)
    exact_IH = torch.randn(WIDTH, 9, generator=torch.Generator().manual_seed(2)).double()
    found_IH = positive_definite.solve(gram_II, gram_II @ exact_IH)
    assert found_IH.dtype == torch.float64
    torch.testing.assert_close(found_IH, exact_IH, rtol=0, atol=1e-2)


def test_what_fp32_cannot_tell_from_singular_is_done_in_fp64_and_said(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    gram_II = gram(1e-7)
    found = inverse(gram_II)
    assert found.matrix_II.dtype == torch.float64
    assert "float64, which is slower" in capsys.readouterr().out
    right_IH = torch.ones(WIDTH, 2).double()
    solved_IH = positive_definite.solve(gram_II, right_IH)
    expected = torch.cholesky_solve(right_IH, torch.linalg.cholesky(gram_II))
    assert torch.equal(solved_IH, expected)
    assert "float64, which is slower" in capsys.readouterr().out


def test_what_is_not_positive_definite_is_an_error_as_in_fp64(narrow: None) -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        inverse(-gram(1.0))


def test_products_that_may_be_less_exact_than_fp32_are_not_used(
    narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    assert positive_definite.working_type(WIDTH, device) == torch.float32
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert positive_definite.working_type(WIDTH, device) == torch.float64

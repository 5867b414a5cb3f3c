"""The divergence of two predictions and its gradient equal the plain formula in float64."""

import pytest
import torch

from ptl_fast.model import predictions
from ptl_fast.model.predictions import most_likely
from support.distillation import plain_divergence, random_logits
from support.numbers import relative_error

VOCABULARY = 50


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [1, 7, VOCABULARY])
def test_divergence_and_its_gradient_equal_the_plain_formula(
    top_k: int, temperature: float
) -> None:
    """With K the vocabulary, that is the whole divergence."""
    student, teacher = random_logits(40, VOCABULARY)
    prediction = most_likely(teacher, top_k, temperature)
    student.requires_grad_()
    ours = predictions.divergence(student / temperature, prediction)
    expected = plain_divergence(
        student, teacher, None if top_k == VOCABULARY else prediction.tokens, temperature
    )
    assert relative_error(ours.detach(), expected.detach()) < 1e-5
    gradients = [torch.autograd.grad(each.sum(), student)[0] for each in (ours, expected)]
    assert relative_error(*gradients) < 1e-5
    whole = plain_divergence(student.detach(), teacher, None, temperature)
    assert (ours.detach() <= whole * (1 + 1e-5) + 1e-5).all(), "one outcome for several loses"


def test_sure_models_give_finite_losses() -> None:
    """Probabilities that float32 rounds to 0 and 1, on both sides, agreeing and not; log(1 - sum)
    would be minus infinity.
    """
    sure = torch.zeros(2, VOCABULARY)
    sure[0, 3], sure[1, 4] = 200.0, 200.0
    prediction = most_likely(sure, 2, 1.0)
    agreeing, other = sure.clone().requires_grad_(), sure.flip(0).requires_grad_()
    assert predictions.divergence(agreeing, prediction).abs().max() < 1e-6
    losses = predictions.divergence(other, prediction)
    torch.testing.assert_close(losses, torch.full((2,), 200.0))
    assert torch.autograd.grad(losses.sum(), other)[0].isfinite().all()

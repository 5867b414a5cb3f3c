"""Distillation's loss and gradient equal the plain formula in float64."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ptl_fast.model import predictions
from ptl_fast.model.predictions import Prediction, most_likely
from ptl_fast.recovery.distillation import loss as loss_module
from support.distillation import plain_divergence, random_logits
from support.numbers import relative_error
from support.recovery import packed

VOCABULARY, LENGTH = 50, 21


def batch(num_rows: int = 3) -> tuple[Tensor, Tensor, Tensor, Prediction]:
    """Student logits, teacher logits, labels where a third is not predicted, and the teacher's
    prediction.
    """
    student, teacher = random_logits(num_rows, LENGTH, VOCABULARY)
    labels = torch.randint(VOCABULARY, (num_rows, LENGTH)).where(
        torch.rand(num_rows, LENGTH) > 1 / 3, loss_module.IGNORED
    )
    flat = most_likely(teacher.flatten(0, 1), 7, 2.0)
    prediction = Prediction(
        *(tensor.unflatten(0, (num_rows, LENGTH)) for tensor in vars(flat).values())
    )
    return student, teacher, labels, prediction


@pytest.mark.parametrize("chunk_bytes", [4 * VOCABULARY * 5, 2**26])
def test_loss_is_the_mixture_over_counted_positions(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding and documents' first tokens do not count; the chunks, the last one ragged, change
    nothing.
    """
    monkeypatch.setattr(predictions, "CHUNK_BYTES", chunk_bytes)
    student, their_logits, labels, prediction = batch()
    student.requires_grad_()
    total, count = loss_module.summed_loss(student, labels, prediction, 0.7, 2.0)
    expected = torch.zeros((), dtype=torch.float64)
    for row, place in (
        (labels[:, 1:] != loss_module.IGNORED).nonzero().tolist()
    ):  # the label after a place is what it predicts
        entropy = F.cross_entropy(student[row, place].double(), labels[row, place + 1])
        kl = plain_divergence(
            student[row, place], their_logits[row, place], prediction.tokens[row, place], 2.0
        )
        expected = expected + 0.7 * 2.0**2 * kl + 0.3 * entropy
    assert count == (labels[:, 1:] != loss_module.IGNORED).sum()
    assert relative_error(total.detach()[None], expected.detach()[None]) < 1e-5
    gradients = [torch.autograd.grad(each, student)[0] for each in (total, expected)]
    assert relative_error(*gradients) < 1e-5
    assert not gradients[0][:, -1].any(), "nothing follows a sequence's last token"
    assert not gradients[0][:, :-1][labels[:, 1:] == loss_module.IGNORED].any()


def test_without_weight_the_gradient_is_that_of_continual_pre_training(
    llama: PreTrainedModel,
) -> None:
    """At temperature 1, weight 0, whatever the teacher says; with another weight it is not."""
    tokens = packed(num_documents=20)[0:4]
    tokens.pop("mask")
    gradients = {}
    for weight in (None, 0.0, 0.5):
        model = copy.deepcopy(llama)
        if weight is None:
            loss = model(**tokens, use_cache=False).loss
        else:
            logits = model(
                input_ids=tokens["input_ids"], position_ids=tokens["position_ids"], use_cache=False
            ).logits
            flat = most_likely(torch.randn(logits.flatten(0, 1).shape), 7, 1.0)
            prediction = Prediction(
                *(tensor.unflatten(0, logits.shape[:2]) for tensor in vars(flat).values())
            )
            total, count = loss_module.summed_loss(
                logits, tokens["labels"], prediction, weight, 1.0
            )
            loss = total / count
        loss.backward()
        gradients[weight] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in gradients[None].items():
        torch.testing.assert_close(gradients[0.0][name], expected, atol=1e-7, rtol=1e-4)
        assert not torch.allclose(gradients[0.5][name], expected, atol=1e-7, rtol=1e-2), name

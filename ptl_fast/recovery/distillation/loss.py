"""Distillation: a round's student learns from the original model's predictions beside the text.

For every position that continual pre-training counts, with student logits z, teacher distribution p
at temperature t and its K likeliest tokens:

    loss = w * t**2 * KL(p || q) + (1 - w) * cross-entropy of z,  q = softmax(z / t)
    KL(p || q) = sum over the K tokens of p (log p - log q) + p_rest (log p_rest - log q_rest)

rest are all other tokens as one outcome: this is at most the whole KL (merging outcomes never
increases a divergence: the log sum inequality), and equal to it when K is the vocabulary. Leaving
the rest out would teach the student probabilities that are too high for the K tokens (arXiv
2503.16870). t**2 keeps the gradient's size, as in Hinton et al. 2015 (arXiv 1503.02531).

The training is continual pre-training's own. TRL 1.16 has distillation trainers
(DistillationTrainer, experimental GKD, and one with the same bucket for the rest), but they sample
from the student, or keep the teacher in memory or on a server, and none trains on packed documents
from predictions on disk. Liger's fused losses need the teacher's hidden states too.

Shape suffixes: T tokens, K likeliest tokens, V vocabulary.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ptl_fast.recovery.distillation.teacher_cache import (
    Prediction,
    TeacherCache,
    rest,
    tokens_per_chunk,
)

IGNORED = -100  # of labels: cross_entropy's ignore_index, as in ptl_fast.data.packing


class Teaching:
    """Adds the teacher's predictions to training examples, and the loss that reads them to the
    model.
    """

    def __init__(
        self,
        cache: TeacherCache,
        weight: float,
        temperature: float,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.cache, self.weight, self.temperature, self._prepare = (
            cache,
            weight,
            temperature,
            prepare,
        )

    def prepare(self) -> None:
        """Fill the cache."""
        self._prepare()

    def example(self, row: int) -> dict[str, Tensor]:
        """The predictions for one sequence, floats as integers of the same bits: under DeepSpeed,
        Trainer rounds floats to bf16.
        """
        read = self.cache.read(row)
        return {
            "log_top": read["log_top"].view(torch.int16),
            "tokens": read["tokens"],
            "log_rest": read["log_rest"].view(torch.int32),
        }

    @contextlib.contextmanager
    def teach(self, model: nn.Module, inputs: dict[str, Any]) -> Iterator[None]:
        """Inside, the model's loss is ours for these inputs, from which the predictions are taken.

        The loss belongs to the model so that it is computed inside the forward pass that DeepSpeed
        and DDP wrap.

        Raises:
            ValueError: the model's class computes its loss in another way.
        """
        prediction = Prediction(
            log_top=inputs.pop("log_top").view(torch.float16),
            tokens=inputs.pop("tokens"),
            log_rest=inputs.pop("log_rest").view(torch.float32),
        )
        was_used = False

        def loss(
            logits: Tensor,
            labels: Tensor,
            vocab_size: int,
            num_items_in_batch: Any = None,
            **kwargs: Any,
        ) -> Tensor:
            nonlocal was_used
            was_used = True
            total, count = summed_loss(logits, labels, prediction, self.weight, self.temperature)
            return total / (count if num_items_in_batch is None else num_items_in_batch)

        before = model.__dict__.get("_loss_function")
        model.loss_function = loss  # type: ignore[assignment]  # a property of transformers' models
        try:
            yield
        finally:
            del model._loss_function
            if before is not None:
                model.loss_function = before
        if not was_used:
            raise ValueError(
                "--recovery distill needs a model whose loss can be replaced (loss_function), and"
                f" {type(model).__name__}"
                " computes its own; use --recovery cpt"
            )


def summed_loss(
    logits: Tensor, labels: Tensor, prediction: Prediction, weight: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """(sum of the positions' losses, how many positions count). Float32 logits exist for a chunk of
    positions at a time.

    Args:
        logits: the student's, (batch, length, V), any float type.
        labels: (batch, length), IGNORED where a token is not predicted, as on padding and at a
            document's first token.
        prediction: the teacher's, (batch, length, ...): of the token that follows each position.
        weight: the divergence's share w of the loss; with 0 the loss is the cross-entropy.
        temperature: the prediction's.
    """
    following_T = F.pad(labels, (0, 1), value=IGNORED)[..., 1:].flatten()
    size = tokens_per_chunk(logits.shape[-1])
    taught = zip(
        *(tensor.flatten(0, 1).split(size) for tensor in vars(prediction).values()), strict=True
    )
    chunks = zip(
        logits.flatten(0, 1).split(size),
        following_T.split(size),
        itertools.starmap(Prediction, taught),
        strict=True,
    )
    # the backward pass computes a chunk again instead of keeping its float32 tensors
    losses = [
        checkpoint(_chunk_loss, *chunk, weight, temperature, use_reentrant=False)
        for chunk in chunks
    ]
    total = torch.stack(losses).sum()
    return total, (following_T != IGNORED).sum()


def _chunk_loss(
    logits_TV: Tensor, following_T: Tensor, taught: Prediction, weight: float, temperature: float
) -> Tensor:
    logits_TV = logits_TV.float()
    loss = torch.zeros((), device=logits_TV.device)
    if weight < 1:
        loss = loss + (1 - weight) * F.cross_entropy(
            logits_TV, following_T, ignore_index=IGNORED, reduction="sum"
        )
    if weight > 0:
        kl_T = divergence(logits_TV / temperature, taught)
        loss = loss + weight * temperature**2 * kl_T.where(following_T != IGNORED, 0.0).sum()
    return loss


def divergence(scaled_TV: Tensor, prediction: Prediction) -> Tensor:
    """KL(p || q) of each position, (T,), with q = softmax(scaled); see the formula at this file's
    top.
    """
    log_p_TK, tokens_TK, log_rest_T = (
        prediction.log_top.float(),
        prediction.tokens.long(),
        prediction.log_rest,
    )
    total_T = scaled_TV.logsumexp(-1)
    log_q_TK = scaled_TV.gather(-1, tokens_TK) - total_T[:, None]
    kl_T = (log_p_TK.exp() * (log_p_TK - log_q_TK)).sum(-1)
    if tokens_TK.shape[-1] == scaled_TV.shape[-1]:
        return kl_T
    return kl_T + log_rest_T.exp() * (log_rest_T - (rest(scaled_TV, tokens_TK) - total_T))

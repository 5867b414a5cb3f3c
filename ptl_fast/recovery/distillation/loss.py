"""Distillation loss: KL divergence from the teacher's top-K distribution, plus cross-entropy.

The student is the pruned model, the teacher the original. At every position that has a label, with
student logits z, teacher distribution p at temperature t and its K likeliest tokens:

    loss = w * t**2 * KL(p || q) + (1 - w) * cross-entropy of z,  q = softmax(z / t)

KL is that of ptl_fast.model.predictions: over the K tokens, and all others as one outcome. Without
the rest the student would learn probabilities for the K tokens that are too high (arXiv
2503.16870). t**2 keeps the gradient's size independent of the temperature, as in Hinton et al. 2015
(arXiv 1503.02531).

The training loop is that of continual pre-training. TRL 1.16 has distillation trainers
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

from ptl_fast.model.predictions import Prediction, divergence, tokens_per_chunk
from ptl_fast.recovery.distillation.teacher_cache import TeacherCache

# Label of positions without a loss: cross_entropy's ignore_index, as in ptl_fast.data.packing.
IGNORED = -100


class Teaching:
    """Adds cached teacher predictions to training examples, and the distillation loss to the model.

    Args:
        cache: the teacher's predictions for every sequence that training reads.
        weight: w in the formula at the top of this file, in [0, 1].
        temperature: t in that formula; the cache must have been filled at the same temperature.
        prepare: fills the cache; called once, before training.
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
        """Return the predictions for one sequence, with floats viewed as integers of the same bits.

        Under DeepSpeed the Trainer casts the float tensors of a batch to bf16; integers pass.
        """
        read = self.cache.read(row)
        return {
            "log_top": read["log_top"].view(torch.int16),
            "tokens": read["tokens"],
            "log_rest": read["log_rest"].view(torch.int32),
        }

    @contextlib.contextmanager
    def teach(self, model: nn.Module, inputs: dict[str, Any]) -> Iterator[None]:
        """Replace the model's loss by the distillation loss for one batch.

        Takes the predictions out of ``inputs``, as the model's forward does not know them. The loss
        is set on the model because DDP and DeepSpeed need it computed inside the forward pass that
        they wrap.

        Raises:
            ValueError: the forward pass did not call the model's ``loss_function``.
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
            # num_items_in_batch: tokens of the whole step, under gradient accumulation
            return total / (count if num_items_in_batch is None else num_items_in_batch)

        # where the setter of loss_function keeps an instance's loss, for restoring it afterwards
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
    """Return (sum of the loss over labelled positions, number of these positions), both scalars.

    Memory: float32 logits exist for a chunk of positions at a time (CHUNK_BYTES), also in the
    backward pass, which computes each chunk's loss a second time.

    Args:
        logits: the student's, (batch, length, V), any float type.
        labels: (batch, length), not shifted; IGNORED on padding and on a document's first token.
        prediction: the teacher's, (batch, length, ...): each position's predicts the next token.
        weight: w, the KL divergence's share of the loss; 0 gives the cross-entropy alone.
        temperature: the one that ``prediction`` was computed with.
    """
    # labels shifted by one; the last position has no next token
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
    # checkpointed: keeping all chunks' float32 tensors for backward would undo the chunking
    losses = [
        checkpoint(_chunk_loss, *chunk, weight, temperature, use_reentrant=False)
        for chunk in chunks
    ]
    total = torch.stack(losses).sum()
    return total, (following_T != IGNORED).sum()


def _chunk_loss(
    logits_TV: Tensor, following_T: Tensor, taught: Prediction, weight: float, temperature: float
) -> Tensor:
    """Sum of the loss over one chunk's labelled positions, float32."""
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

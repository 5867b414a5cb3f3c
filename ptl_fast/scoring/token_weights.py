"""Weights of calibration tokens: those count more at which a pruned model predicts differently.

A *probe* is the model with the down projections that pruning by unweighted scores would leave it.
At every token t, KL[t] is the divergence of the probe's next-token distribution from the model's
own, over its TOP_K likeliest tokens and all others as one outcome. Tokens' weights grow with it:

    w[t] = (1 - SHARE) + SHARE * d[t] / mean d,  d[t] = min(KL[t], LARGEST * mean KL)

Most tokens of a text are as good as certain whatever is pruned; squares of activations count them
like those few where an answer takes its turns. The idea is ReCal's (arXiv 2610.11332), which
weights its statistics by the same divergence.

Shape suffixes: T tokens, V vocabulary, H hidden size, I FFN width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptl_fast.base import distributed
from ptl_fast.base.progress import progress
from ptl_fast.data.batching import sequence_batches
from ptl_fast.model import predictions
from ptl_fast.model.experts import View
from ptl_fast.model.families import DownProjection
from ptl_kernels import matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.model.predictions import Prediction

# tokens that a divergence tells apart, as in ReCal
TOP_K = 16
# The part of all weight that follows the divergence. The rest is spread evenly, so that least
# squares also keeps what the probe happened to get right.
SHARE = 0.5
# Larger divergences than this many times the mean count as this, so that no few tokens decide.
LARGEST = 10.0


def divergence(
    model: "PreTrainedModel",
    tokens: "PackedTokens",
    batch_size: int,
    downs: Sequence[DownProjection],
    probe: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Return how far a probe's prediction after each token is from the model's: KL in nats.

    Two forward passes, language-model head included, over every token, shared among the ranks; all
    of them must call this and get the same.

    Args:
        batch_size: packed sequences in a forward pass.
        downs: the model's down projections.
        probe: what stands in their place in the probe, (hidden_size, width) each.
        biases: and in the place of their biases, (hidden_size,) each; None where that stays.

    Returns:
        (num_sequences, length) float32 on the CPU. It is 0 on padding and at the last token of each
        document, after which nothing is predicted.

    Raises:
        ValueError: a divergence is NaN or infinite.
    """
    was_training = model.training
    model.eval()
    found = torch.zeros(tokens.mask.shape)
    mine = torch.arange(len(tokens))[distributed.rank() :: distributed.world_size()]
    chosen = mine.split(batch_size)
    batches = zip(chosen, sequence_batches(model, tokens.rows(mine), batch_size), strict=False)
    with torch.inference_mode():
        for rows, batch in progress(batches, "weigh tokens", len(chosen)):
            logits_TV = _logits(model, batch.inputs)
            own = [predictions.most_likely(chunk, TOP_K, 1.0) for chunk in _chunks(logits_TV)]
            del logits_TV  # the probe's take their place
            with _in_place_of(downs, probe, biases or [None] * len(downs)):
                kl_T = _divergences(_logits(model, batch.inputs), own)
            found[rows] = kl_T.view(batch.mask.shape).cpu()
    model.train(was_training)
    # where no token of the same document follows there is nothing to predict
    followed = (tokens.mask & (tokens.position_ids > 0)).roll(-1, 1)
    followed[:, -1] = False
    # rounding can leave a divergence of zero slightly negative
    found = distributed.summed({"divergence": found})["divergence"].clamp_min(0) * followed
    if not found.isfinite().all():
        raise ValueError(
            "the predictions of the pruned model by which --token-weights divergence weighs tokens"
            " are NaN or infinite; use --dtype bfloat16 or float32 if it was run in float16, or"
            " --token-weights none"
        )
    return found


def weighted(tokens: "PackedTokens", divergence: Tensor) -> "PackedTokens":
    """Return the same tokens with weights by the formula at the top of this file; their sum is the
    number of tokens that count.

    Args:
        divergence: KL of each token, (num_sequences, length), finite and not negative.
    """
    counted = divergence[tokens.counted].double()
    clipped = counted.clamp_max(LARGEST * counted.mean())
    # a probe that predicts like the model tells no token from another
    relative = clipped / clipped.mean() if clipped.any() else torch.ones_like(clipped)
    weights = torch.zeros(tokens.mask.shape)
    weights[tokens.counted] = (1 - SHARE + SHARE * relative).float()
    return replace(tokens, weights=weights)


def summary(tokens: "PackedTokens", divergence: Tensor) -> dict[str, Any]:
    """What the report says of a round's weights.

    Args:
        tokens: with their weights.
        divergence: KL of each token, as for ``weighted``.

    Returns:
        mean_divergence, in nats; top_tenth, the share of all divergence that the tenth of the
        tokens has at which it is largest; num_tokens; effective_tokens, (sum w)^2 / sum w^2, so
        many tokens of equal weight would give means as little noise.
    """
    assert tokens.weights is not None
    counted = divergence[tokens.counted].double()
    weights = tokens.weights[tokens.counted].double()
    largest = counted.sort(descending=True).values[: -(-len(counted) // 10)]
    return {
        "mean_divergence": float(counted.mean()),
        "top_tenth": float(largest.sum() / counted.sum()) if counted.any() else 0.1,
        "num_tokens": len(counted),
        "effective_tokens": round(float(weights.sum().square() / weights.square().sum())),
    }


def _logits(model: "PreTrainedModel", inputs: dict[str, Tensor]) -> Tensor:
    """The logits of a batch, (num_tokens, vocabulary)."""
    return model(**inputs, use_cache=False).logits.flatten(0, -2)


def _chunks(logits_TV: Tensor) -> tuple[Tensor, ...]:
    """Positions in groups: float32 logits of a whole batch may not fit next to the model."""
    return logits_TV.split(predictions.tokens_per_chunk(logits_TV.shape[-1]))


def _divergences(logits_TV: Tensor, own: "list[Prediction]") -> Tensor:
    """KL of each position, (num_tokens,), from these predictions, one for each of the chunks."""
    return torch.cat(
        [
            predictions.divergence(chunk.float(), each)
            for chunk, each in zip(_chunks(logits_TV), own, strict=True)
        ]
    )


@contextmanager
def _in_place_of(
    downs: Sequence[DownProjection], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> Iterator[None]:
    """Give these linear layers other weights, and other biases where there are, inside."""
    before = [
        (parameter, parameter.data) for down in downs for parameter in down.module.parameters()
    ]
    # an expert's weight is a view of others' too: its values change, and not the tensor
    views = [down for down in downs if isinstance(down.module, View)]
    kept = [
        (tensor, tensor.clone())
        for down in views
        for tensor in (down.weight_HI, down.bias)
        if tensor is not None
    ]
    try:
        for down, weight, bias in zip(downs, weights, biases, strict=True):
            if isinstance(down.module, View):
                down.weight_HI.copy_(weight)
                if bias is not None and down.bias is not None:
                    down.bias.copy_(bias)
                continue
            # a module that holds the transpose gets it
            straight = matrix(down.module) is down.module.weight
            down.module.weight.data = weight if straight else weight.T
            if bias is not None:
                down.module.bias.data = bias
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
        for tensor, values in kept:
            tensor.copy_(values)

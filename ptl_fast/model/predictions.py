"""Next-token distributions as the K likeliest tokens and the rest, and how far two are apart.

With p a model's distribution at a position, given as its K likeliest tokens, and q another's:

    KL(p || q) = sum over the K tokens of p (log p - log q) + p_rest (log p_rest - log q_rest)

``rest`` is one outcome that stands for all other tokens. By the log sum inequality merging outcomes
never increases a divergence, so this is a lower bound of the full KL, and equal to it when K is the
vocabulary size.

Shape suffixes: T tokens, K likeliest tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Float32 logits that exist at a time.
CHUNK_BYTES = 2**26
# Stands for log 0: the lowest float16, whose exp() is 0. With minus infinity, p log p would be NaN.
LOG_ZERO = -65504.0


@dataclass(frozen=True)
class Prediction:
    """A model's next-token distribution at positions ``...``: K likeliest tokens, and the rest.

    Natural-log probabilities of softmax(logits / temperature). The K tokens and ``log_rest``
    together are a distribution over K + 1 outcomes.
    """

    log_top: Tensor
    """(..., K): log-probabilities of the K most likely tokens, descending."""
    tokens: Tensor
    """(..., K): their token ids."""
    log_rest: Tensor
    """(...): log-probability of all other tokens together."""


def most_likely(logits_TV: Tensor, top_k: int, temperature: float) -> Prediction:
    """Return the top-K prediction of softmax(logits / temperature), computed in float32.

    Args:
        logits_TV: any float type.
        top_k: K; at most V tokens are kept.
    """
    scaled_TV = logits_TV.float() / temperature
    total_T = scaled_TV.logsumexp(-1)
    top_TK, tokens_TK = scaled_TV.topk(min(top_k, scaled_TV.shape[-1]), dim=-1)
    # not log(1 - sum of the K), which loses all digits of a small rest
    log_rest_T = rest(scaled_TV, tokens_TK) - total_T
    return Prediction(
        (top_TK - total_T[:, None]).clamp(min=LOG_ZERO), tokens_TK, log_rest_T.clamp(min=LOG_ZERO)
    )


def divergence(scaled_TV: Tensor, prediction: Prediction) -> Tensor:
    """Return KL(p || q) per position, (T,) float32 in nats, by the formula at the top of this file.

    Args:
        scaled_TV: the logits of q divided by the temperature, float32.
        prediction: p, its K likeliest tokens and the rest.
    """
    log_p_TK, tokens_TK, log_rest_T = (
        prediction.log_top.float(),
        prediction.tokens.long(),
        prediction.log_rest,
    )
    total_T = scaled_TV.logsumexp(-1)
    log_q_TK = scaled_TV.gather(-1, tokens_TK) - total_T[:, None]
    kl_T = (log_p_TK.exp() * (log_p_TK - log_q_TK)).sum(-1)
    # the K tokens are the whole vocabulary: the rest has probability 0, and its log q is -inf
    if tokens_TK.shape[-1] == scaled_TV.shape[-1]:
        return kl_T
    return kl_T + log_rest_T.exp() * (log_rest_T - (rest(scaled_TV, tokens_TK) - total_T))


def rest(scaled_TV: Tensor, tokens_TK: Tensor) -> Tensor:
    """Return the logsumexp, (T,), over all tokens but these; minus infinity if none are left."""
    return scaled_TV.scatter(-1, tokens_TK, -torch.inf).logsumexp(-1)


def tokens_per_chunk(vocab_size: int) -> int:
    """How many positions' float32 logits take CHUNK_BYTES; at least one."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))

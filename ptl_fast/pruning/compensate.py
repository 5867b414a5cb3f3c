"""Compensate for removed neurons: refit each down projection by least squares on its output.

Let A be an FFN's activations, W its down projection, and S the neurons that stay. The columns for S
that best reproduce the output A W^T are W G[:, S] inv(G[S, S]), where G = A^T A is the Gram matrix
that ``scoring.gram`` collects.

Shape suffixes: L layers, I FFN width, K kept neurons, H hidden size.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def compensate_(
    downs: Sequence[nn.Linear], grams: Iterable[Tensor], kept_LK: Sequence[Sequence[int]]
) -> None:
    """Refit the kept neurons' columns of each down projection, in place, by least squares.

    The others are not removed here; compaction does that afterwards.

    Args:
        downs: every layer's down projection, in order.
        grams: each layer's Gram matrix on the unchanged model, (width, width) fp64, in order.
        kept_LK: indices of the neurons that stay, (num_layers, num_kept).

    Per layer the Cholesky factorization costs K^3 / 3 floating-point operations and the products
    2 H K (I + K), all in fp64.
    """
    # iterating ``grams`` may run the model, so no weight may change before all layers are solved
    columns = [
        least_squares(gram_II, down.weight, torch.tensor(kept_K, device=gram_II.device))
        for gram_II, down, kept_K in zip(grams, downs, kept_LK, strict=True)
    ]
    for down, columns_HK, kept_K in zip(downs, columns, kept_LK, strict=True):
        down.weight[:, torch.tensor(kept_K, device=columns_HK.device)] = columns_HK


def least_squares(gram_II: Tensor, down_HI: Tensor, kept_K: Tensor) -> Tensor:
    """Return the kept neurons' columns that best reproduce a whole layer's output.

    Args:
        gram_II: Gram matrix with its ridge, (width, width) fp64; positive definite.
        down_HI: down projection, (hidden_size, width).
        kept_K: indices of the neurons that stay, (num_kept,) int64.

    Returns:
        (hidden_size, num_kept), in the dtype of ``down_HI``; solved in fp64.
    """
    # normal equations G[S, S] X = (W G[:, S])^T; the ridge makes a Cholesky factorization possible
    factor = torch.linalg.cholesky(gram_II[kept_K][:, kept_K])
    target_KH = (down_HI.double() @ gram_II[:, kept_K]).T
    return torch.cholesky_solve(target_KH, factor).T.to(down_HI.dtype)

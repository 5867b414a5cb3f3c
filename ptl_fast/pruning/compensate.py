"""The neurons that stay take the place of those that go: least squares on a layer's output.

The columns of the kept neurons S that come nearest to the output A W^T are W G[:, S] inv(G[S, S])
with the Gram matrix G = A^T A, which ptl_fast.scoring.gram collects. Shape suffixes: L layers, I
FFN width, K kept neurons, H hidden size.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ptl_kernels import GatedFfn


@torch.no_grad()
def compensate_(
    ffns: Sequence[GatedFfn], grams: Iterable[Tensor], kept_LK: Sequence[Sequence[int]]
) -> None:
    """Change the kept neurons' columns of each down projection, in place, so that its output
    changes least without the others.

    The neurons that go are still there. Costs K^3 / 3 operations a layer in float64.

    Args:
        grams: each layer's Gram matrix, (width, width) fp64, in order.
    """
    # all layers are measured before the first is changed
    columns = [
        least_squares(gram_II, ffn.down.weight, torch.tensor(kept_K, device=gram_II.device))
        for gram_II, ffn, kept_K in zip(grams, ffns, kept_LK, strict=True)
    ]
    for ffn, columns_HK, kept_K in zip(ffns, columns, kept_LK, strict=True):
        ffn.down.weight[:, torch.tensor(kept_K, device=columns_HK.device)] = columns_HK


def least_squares(gram_II: Tensor, down_HI: Tensor, kept_K: Tensor) -> Tensor:
    """The kept neurons' columns, (hidden, kept), that come nearest to the whole layer's output; the
    weight's type.
    """
    factor = torch.linalg.cholesky(gram_II[kept_K][:, kept_K])
    target_KH = (down_HI.double() @ gram_II[:, kept_K]).T
    return torch.cholesky_solve(target_KH, factor).T.to(down_HI.dtype)

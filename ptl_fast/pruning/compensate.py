"""Compensate for removed neurons: refit each down projection by least squares on its output.

Let A be an FFN's activations, W its down projection, and S the neurons that stay. The columns for S
that best reproduce the output A W^T are W G[:, S] inv(G[S, S]), where G = A^T A is the Gram matrix
that ``scoring.gram`` collects.

Shape suffixes: L layers, I FFN width, K kept neurons, H hidden size.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ptl_fast.base import positive_definite
from ptl_fast.model.families import DownProjection


@torch.no_grad()
def compensate_(
    downs: Sequence[DownProjection],
    grams: Iterable[Tensor],
    kept_LK: Sequence[Sequence[int]],
    means: Mapping[int, Tensor] | None = None,
) -> None:
    """Refit the kept neurons' columns of each down projection, in place, by least squares; and its
    bias, where it has one.

    The other columns are not removed here; compaction does that afterwards.

    Args:
        downs: every layer's down projection, in order.
        grams: each layer's Gram matrix on the unchanged model, (width, width) fp64, in order.
        kept_LK: indices of the neurons that stay, (num_layers, num_kept).
        means: by layer, each neuron's mean, (width,) fp64, where ``grams`` are of activations less
            their means: as ``scoring.gram.GramMatrices.means``, complete once they were iterated.

    Per layer the Cholesky factorization costs K^3 / 3 floating-point operations and the products
    2 H K (I + K), in the type that ``positive_definite.working_type`` says.
    """
    # iterating ``grams`` may run the model, so no weight may change before all layers are solved
    columns = [
        least_squares(gram_II, down.weight_HI, torch.tensor(kept_K, device=gram_II.device))
        for gram_II, down, kept_K in zip(grams, downs, kept_LK, strict=True)
    ]
    for layer, (down, columns_HK, kept) in enumerate(zip(downs, columns, kept_LK, strict=True)):
        kept_K = torch.tensor(kept, device=columns_HK.device)
        if means and layer in means:
            fitted_HI = torch.zeros_like(down.weight_HI).index_copy_(1, kept_K, columns_HK)
            assert down.bias is not None  # as the layer has means
            down.bias.copy_(_bias(down, fitted_HI, means[layer]))
        down.weight_HI[:, kept_K] = columns_HK


@torch.no_grad()
def put_columns_(
    downs: Sequence[DownProjection], columns: Sequence[Tensor], kept_LK: Sequence[Sequence[int]]
) -> None:
    """Put the kept neurons' columns, (hidden_size, num_kept) for each layer, into the weights."""
    for down, columns_HK, kept_K in zip(downs, columns, kept_LK, strict=True):
        down.weight_HI[:, torch.tensor(kept_K, device=columns_HK.device)] = columns_HK


@torch.no_grad()
def pruned_projections(
    downs: Sequence[DownProjection],
    grams: Iterable[Tensor] | None,
    kept_LK: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Return every layer's down projection as pruning will leave it, in its present shape.

    The columns of the neurons that go are zero. Those of the others are refitted by least squares,
    or as they are without Gram matrices. The arguments are those of ``compensate_``.
    """
    pruned = []
    gram = iter(grams) if grams is not None else itertools.repeat(None)
    for down, kept_K, gram_II in zip(downs, map(torch.tensor, kept_LK), gram, strict=False):
        weight_HI = down.weight_HI
        kept_K = kept_K.to(weight_HI.device)
        columns_HK = weight_HI[:, kept_K]
        if gram_II is not None:
            columns_HK = least_squares(gram_II, weight_HI, kept_K)
        pruned.append(torch.zeros_like(weight_HI).index_copy_(1, kept_K, columns_HK))
    return pruned


@torch.no_grad()
def pruned_biases(
    downs: Sequence[DownProjection], pruned: Sequence[Tensor], means: Mapping[int, Tensor]
) -> list[Tensor | None]:
    """Return every layer's bias as pruning will leave it; None where it stays as it is.

    Args:
        pruned: what ``pruned_projections`` returns.
        means: as for ``compensate_``.
    """
    return [
        _bias(down, fitted_HI, means[layer]) if layer in means else None
        for layer, (down, fitted_HI) in enumerate(zip(downs, pruned, strict=True))
    ]


def _bias(down: DownProjection, fitted_HI: Tensor, mean_I: Tensor) -> Tensor:
    """The bias beside new columns, (hidden_size,): what the mean output loses is added to it."""
    assert down.bias is not None
    lost_H = (down.weight_HI.double() - fitted_HI.double()) @ mean_I
    return (down.bias.double() + lost_H).to(down.bias.dtype)


def least_squares(gram_II: Tensor, down_HI: Tensor, kept_K: Tensor) -> Tensor:
    """Return the kept neurons' columns that best reproduce a whole layer's output.

    Args:
        gram_II: Gram matrix with its ridge, (width, width) fp64; positive definite.
        down_HI: down projection, (hidden_size, width).
        kept_K: indices of the neurons that stay, (num_kept,) int64.

    Returns:
        (hidden_size, num_kept), in the dtype of ``down_HI``; solved as
        ``positive_definite.working_type`` says.
    """
    # normal equations G[S, S] X = (W G[:, S])^T; the ridge makes a Cholesky factorization possible.
    # Where fp32 solves them, X is the present columns and a change, of which the right-hand side is
    # that of the other columns: less to multiply, and only the change is rounded to fp32. It is
    # made in fp64, as massive activations less what explains them leave little.
    working_type = positive_definite.working_type(len(kept_K), gram_II.device)
    if working_type == torch.float32:
        is_other_I = torch.ones_like(gram_II[0], dtype=torch.bool).index_fill_(0, kept_K, False)
        others = is_other_I.nonzero()[:, 0]
        target_KH = (down_HI[:, others].double() @ gram_II[others[:, None], kept_K]).T
    else:
        target_KH = (down_HI.double() @ gram_II[:, kept_K]).T
    # indexed at once, as G's rows of the kept neurons alone may be a gigabyte
    columns_HK = positive_definite.solve(gram_II[kept_K[:, None], kept_K], target_KH).T
    if working_type == torch.float32:
        columns_HK = columns_HK + down_HI[:, kept_K].double()
    return columns_HK.to(down_HI.dtype)

"""In which order neurons should go if the others take their place: backward elimination by least
squares.
"""

import torch
from torch import Tensor

from ptl_fast.scoring.gram import GramMatrices

CHUNK = 32  # one part in this many of the neurons that are left is priced and removed together


def prices(grams: GramMatrices) -> Tensor:
    """Return the order in which neurons should go, (num_layers, width) fp64 on the CPU, and what
    that costs.

    price[l, i] = sqrt(sum_t ||y_t - y'_t||^2), y the layer's output, and y' what it is at best
    without i and all of a lower price.

    Costs about 3 I^3 operations a layer in float64.
    """
    return torch.stack(
        [
            eliminate(gram_II, ffn.down.weight.detach())
            for gram_II, ffn in zip(grams, grams.ffns, strict=True)
        ]
    ).cpu()


def eliminate(gram_II: Tensor, down_HI: Tensor) -> Tensor:
    """The price of every neuron of a layer, (width,) fp64: see ``prices``.

    The inverse of what is left of G, and the columns that make up for what is gone, are updated
    chunk by chunk. Within a chunk the order is by single prices; what it costs is exact.
    """
    inverse, columns = torch.cholesky_inverse(torch.linalg.cholesky(gram_II)), down_HI.double()
    left = torch.arange(len(gram_II), device=gram_II.device)
    price_I = torch.zeros(len(gram_II), dtype=torch.float64, device=gram_II.device)
    total = torch.zeros((), dtype=torch.float64, device=gram_II.device)
    while len(left):
        single = columns.square().sum(0) / inverse.diagonal()
        order = single.argsort(stable=True)
        gone, stays = order[: -(-len(left) // CHUNK)], order[-(-len(left) // CHUNK) :].sort().values
        factor = torch.linalg.cholesky(inverse[gone][:, gone])
        solved = torch.linalg.solve_triangular(factor, columns[:, gone].T, upper=False)
        cumulative = total + solved.square().sum(1).cumsum(0)
        price_I[left[gone]], total = cumulative, cumulative[-1]
        across = torch.linalg.solve_triangular(factor, inverse[gone][:, stays], upper=False)
        columns = columns[:, stays] - solved.T @ across
        inverse = inverse[stays][:, stays] - across.T @ across
        left = left[stays]
    return price_I.sqrt()

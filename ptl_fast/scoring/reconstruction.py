"""Score FFN neurons by backward elimination: how well the others can replace each of them.

torch is imported inside the functions, as in ``scoring.scorers``.
``scoring.gram`` explains the least-squares problem. Shape suffixes: I FFN width, H hidden size.
"""

from typing import TYPE_CHECKING

from ptl_fast.base.progress import Steps

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.scoring.evidence import Evidence
    from ptl_fast.scoring.gram import GramMatrices

# each step removes 1/32 of the neurons that are left: one at a time would mean rank-1 updates of
# whole matrices, which memory bandwidth limits
CHUNK = 32
# A matrix with more elements than WHOLE is updated in blocks of rows with BLOCK elements, so that a
# width of 14,336 needs no three more matrices of 1.5 GiB. Up to a width of 8192 it is one product,
# as the products of blocks are rounded otherwise (prices differ by 1e-14 of themselves).
WHOLE, BLOCK = 2**26, 2**23


def score(evidence: "Evidence") -> "Tensor":
    """score[l, i] = error of the FFN's output without i and all neurons that score lower.

    The error is Eq. 2's for a set of neurons, an L2 norm over all tokens, after the down projection
    of the other neurons was fitted anew by least squares.
    """
    assert evidence.grams is not None
    return prices(evidence.grams)


def prices(grams: "GramMatrices") -> "Tensor":
    """Return each neuron's price, (num_layers, width) fp64 on the CPU; lowest prices go first.

    price[l, i] = sqrt(sum_t ||y_t - y'_t||^2), the error of layer l's output when neuron i and all
    cheaper ones are removed: y is the output, and y' its best approximation by the other neurons
    (least squares, with the ridge of G). So prices grow along the order of removal.

    Costs about 3 I^3 floating-point operations per layer, in fp64.
    """
    import torch

    prices_LI = []
    # opened behind the pass that makes the first matrix, which has a bar of its own
    with Steps("rank neurons, layer", len(grams.downs)) as layers:
        for gram_II, down in zip(grams, grams.downs, strict=True):
            prices_LI.append(eliminate(gram_II, down.weight_HI, layers))
    return torch.stack(prices_LI).cpu()


def eliminate(gram_II: "Tensor", down_HI: "Tensor", layers: Steps | None = None) -> "Tensor":
    """Return the price of every neuron of one layer, (width,) fp64; see ``prices``.

    Neurons are removed in chunks. Within a chunk the order is by the price of removing each alone,
    which is approximate; the error that this order causes is exact.

    Beside G it takes the memory of one matrix like it, and of the down projection in fp64.

    Args:
        gram_II: G with the ridge, (width, width) fp64; positive definite.
        down_HI: down projection, (hidden_size, width).
        layers: progress of which this is one step; it moves with every chunk.
    """
    import torch

    # for the neurons that are left: the inverse of their block of G, and their compensated columns
    inverse = torch.linalg.cholesky(gram_II)
    # symmetric, so its transpose, whose memory is in the order of rows, is the same
    inverse = torch.cholesky_inverse(inverse, out=inverse).mT.contiguous()
    columns = down_HI.to(torch.float64, copy=True).contiguous()
    every = torch.arange(len(columns), device=columns.device)
    left = torch.arange(len(gram_II), device=gram_II.device)
    price_I = torch.zeros(len(gram_II), dtype=torch.float64, device=gram_II.device)
    total = torch.zeros((), dtype=torch.float64, device=gram_II.device)
    while len(left):
        # Optimal Brain Surgeon's price of removing each neuron alone
        single = columns.square().sum(0) / inverse.diagonal()
        order = single.argsort(stable=True)
        gone, stays = order[: -(-len(left) // CHUNK)], order[-(-len(left) // CHUNK) :].sort().values
        # a Cholesky factor L of inv(G) on the chunk: the squared norm of row j of inv(L) columns^T
        # is the error that neuron j adds after the ones before it in the chunk
        factor = torch.linalg.cholesky(inverse[gone][:, gone])
        solved = torch.linalg.solve_triangular(factor, columns[:, gone].T, upper=False)
        cumulative = total + solved.square().sum(1).cumsum(0)
        price_I[left[gone]], total = cumulative, cumulative[-1]
        # block elimination updates the inverse and the columns without a new factorization
        across = torch.linalg.solve_triangular(factor, inverse[gone][:, stays], upper=False)
        columns = _reduced_(columns, every, stays, solved, across)
        inverse = _reduced_(inverse, stays, stays, across, across)
        if layers is not None:
            layers.update(len(gone) / len(gram_II))
        left = left[stays]
    return price_I.sqrt()


def _reduced_(
    matrix: "Tensor", rows: "Tensor", columns: "Tensor", left: "Tensor", right: "Tensor"
) -> "Tensor":
    """matrix[rows][:, columns] - left.T @ right, in the memory of ``matrix``.

    Args:
        matrix: contiguous.
        rows: ascending, so that no row is written before it has been read.
    """
    flat, width = matrix.view(-1), len(columns)
    step = len(rows) if matrix.numel() <= WHOLE else max(1, BLOCK // matrix.shape[1])
    # the last chunk leaves nothing
    for start in range(0, len(rows), max(1, step)):
        block = matrix[rows[start : start + step]][:, columns]
        block -= left[:, start : start + step].T @ right
        flat[start * width :][: block.numel()] = block.view(-1)
    return flat[: len(rows) * width].view(len(rows), width)

"""Score FFN neurons by backward elimination: how well the others can replace each of them.

torch is imported inside the functions, as in ``scoring.scorers``.
``scoring.gram`` explains the least-squares problem. Shape suffixes: I FFN width, H hidden size.
"""

from typing import TYPE_CHECKING

from ptl_fast.base.progress import Steps

if TYPE_CHECKING:
    import torch
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
# A wide inverse is updated when this share of its neurons has gone, by one product for all of their
# chunks, and in so many blocks of rows, as half of a symmetric product is enough.
WAIT, HALVED = 1 / 5, 8
# Where an element of an inverse in fp32 has shrunk to this part, it has two or three digits left,
# and the inverse of the neurons that are left is computed anew.
WORN = 1e-5


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

    Costs about 1.4 I^3 floating-point operations per layer, 1.7 I^3 up to a width of
    ``positive_definite.NARROW``, in the working type.
    """
    import torch

    from ptl_fast.base import distributed

    rank, num_ranks = distributed.rank(), distributed.world_size()
    prices_LI = torch.zeros(len(grams.downs), grams.width, dtype=torch.float64)
    # opened behind the pass that makes the first matrix, which has a bar of its own
    with Steps("rank neurons, layer", len(range(rank, len(prices_LI), num_ranks))) as layers:
        for index, (gram_II, down) in enumerate(zip(grams, grams.downs, strict=True)):
            # every rank has all matrices, and eliminates its share of them
            if index % num_ranks == rank:
                prices_LI[index] = eliminate(gram_II, down.weight_HI, layers).cpu()
    return distributed.summed({"prices": prices_LI})["prices"]


def eliminate(gram_II: "Tensor", down_HI: "Tensor", layers: Steps | None = None) -> "Tensor":
    """Return the price of every neuron of one layer, (width,) fp64; see ``prices``.

    Neurons are removed in chunks. Within a chunk the order is by the price of removing each alone,
    which is approximate; the error that this order causes is exact.

    Beside G it takes at most the memory of one matrix like it, and of the down projection in fp64.

    Args:
        gram_II: G with the ridge, (width, width) fp64; positive definite.
        down_HI: down projection, (hidden_size, width).
        layers: progress of which this is one step; it moves with every chunk.
    """
    import torch

    from ptl_fast.base import positive_definite

    working_type = positive_definite.working_type(len(gram_II), gram_II.device)
    if working_type != torch.float64:
        try:
            return _eliminate(gram_II, down_HI, working_type, layers)
        except torch.linalg.LinAlgError:
            # a chunk's part of the inverse lost its last digit
            positive_definite.say_fp64(len(gram_II))
    return _eliminate(gram_II, down_HI, torch.float64, layers)


def _eliminate(
    gram_II: "Tensor", down_HI: "Tensor", working_type: "torch.dtype", layers: Steps | None
) -> "Tensor":
    """``eliminate`` with the inverse and the columns in this type."""
    import torch

    # of the neurons that are left, their compensated columns
    columns = down_HI.to(torch.float64, copy=True).contiguous()
    every = torch.arange(len(columns), device=columns.device)
    left = torch.arange(len(gram_II), device=gram_II.device)
    price_I = torch.zeros(len(gram_II), dtype=torch.float64, device=gram_II.device)
    total = torch.zeros((), dtype=torch.float64, device=gram_II.device)
    inverse: _Inverse | None = None
    while len(left):
        if inverse is None or inverse.is_worn():
            if inverse is not None:
                columns = columns.double().mul_(inverse.scale)
            block = gram_II if inverse is None else gram_II[left[:, None], left]
            del inverse
            inverse, order = _fresh_inverse(block, working_type)
            del block
            left, columns = left[order], columns[:, order].div_(inverse.scale)
            columns = columns.to(inverse.matrix.dtype).contiguous()
        # Optimal Brain Surgeon's price of removing each neuron alone
        single = columns.square().sum(0) / inverse.diagonal()
        order = single.argsort(stable=True)
        gone, stays = order[: -(-len(left) // CHUNK)], order[-(-len(left) // CHUNK) :].sort().values
        # a Cholesky factor L of inv(G) on the chunk: the squared norm of row j of inv(L) columns^T
        # is the error that neuron j adds after the ones before it in the chunk
        rows = inverse.rows(gone)
        factor = torch.linalg.cholesky(rows[:, gone])
        solved = torch.linalg.solve_triangular(factor, columns[:, gone].T, upper=False)
        cumulative = total + solved.double().square().sum(1).cumsum(0)
        price_I[left[gone]], total = cumulative, cumulative[-1]
        # block elimination updates the inverse and the columns without a new factorization
        across = torch.linalg.solve_triangular(factor, rows[:, stays], upper=False)
        columns = _reduced_(columns, every, stays, solved, across)
        inverse.remove(stays, across)
        if layers is not None:
            layers.update(len(gone) / len(gram_II))
        left = left[stays]
    return price_I.sqrt()


def _fresh_inverse(gram_II: "Tensor", working_type: "torch.dtype") -> "tuple[_Inverse, Tensor]":
    """The inverse of a Gram matrix, and the order of its neurons in it."""
    from ptl_fast.base import positive_definite

    found = positive_definite.inverse(gram_II, working_type)
    wide = len(gram_II) > positive_definite.NARROW
    return _Inverse(found.matrix_II, found.scale_I, wide), found.order_I


class _Inverse:
    """The inverse of the Gram matrix of the neurons that are left, N of them.

    Without a chunk it is smaller by across^T across. A narrow matrix is updated at once. A wide one
    keeps what is to be subtracted, with which only the rows that are asked for, and the diagonal,
    are brought up to date; so the matrix is not read for every chunk, and its products are large.

    Args:
        matrix: the inverse for all neurons, contiguous; it is overwritten.
        scale: the inverse is this, scale[:, None] * matrix * scale.
    """

    def __init__(self, matrix: "Tensor", scale: "Tensor", wide: bool) -> None:
        self.scale, self.wide = scale, wide
        """(N,) fp64."""
        self.first = matrix.diagonal().clone()
        """(N,): the diagonal as it was with all neurons."""
        self._begin(matrix)

    def is_worn(self) -> bool:
        """Whether so much was subtracted from a neuron's element of the diagonal that few digits
        are left: of one that others could replace, which have gone.
        """
        import torch

        if self.matrix.dtype == torch.float64:
            return False
        return bool((self.diagonal() < WORN * self.first).any())

    def _begin(self, matrix: "Tensor") -> None:
        """Go on with a matrix that is up to date."""
        import torch

        self.matrix = matrix
        self.places = torch.arange(len(matrix), device=matrix.device)
        """(N,): which rows and columns of the matrix are those of the neurons that are left."""
        self.num_waiting = 0
        if self.wide:
            self.most = max(1, int(WAIT * len(matrix)))
            # a chunk may come on top
            size = self.most + -(-len(matrix) // CHUNK)
            self.waiting = matrix.new_zeros(size, len(matrix))
            """Its first rows are what is to be subtracted, at the columns of the matrix."""
            self.current = matrix.diagonal().clone()
            """The diagonal, up to date."""

    def diagonal(self) -> "Tensor":
        """(N,)."""
        return self.current[self.places] if self.wide else self.matrix.diagonal()

    def rows(self, which: "Tensor") -> "Tensor":
        """These neurons' rows, (len(which), N)."""
        rows = self.matrix[self.places[which]]
        if not self.num_waiting:
            return rows[:, self.places] if self.wide else rows
        waiting = self.waiting[: self.num_waiting]
        rows -= waiting[:, self.places[which]].T @ waiting
        return rows[:, self.places]

    def remove(self, stays: "Tensor", across: "Tensor") -> None:
        """Leave these neurons alone, and subtract across^T across, (chunk, len(stays))."""
        self.scale, self.first = self.scale[stays], self.first[stays]
        if not self.wide:
            self._begin(_reduced_(self.matrix, stays, stays, across, across))
            return
        self.places = self.places[stays]
        first, self.num_waiting = self.num_waiting, self.num_waiting + len(across)
        self.waiting[first : self.num_waiting, self.places] = across
        self.current[self.places] -= across.square().sum(0)
        if self.num_waiting >= self.most:
            waiting = self.waiting[: self.num_waiting, self.places]
            del self.waiting
            self._begin(_reduced_symmetric_(self.matrix, self.places, waiting))


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


def _reduced_symmetric_(matrix: "Tensor", places: "Tensor", across: "Tensor") -> "Tensor":
    """matrix[places][:, places] - across.T @ across, in the memory of the symmetric ``matrix``.

    Args:
        matrix: contiguous.
        places: ascending, so that no row is written before it has been read.
    """
    width = len(places)
    reduced = matrix.view(-1)[: width * width].view(width, width)
    step = max(1, -(-width // HALVED))
    for start in range(0, width, step):
        end = min(start + step, width)
        block = matrix[places[start:end]][:, places[:end]]
        block -= across[:, start:end].T @ across[:, :end]
        reduced[start:end, :end] = block
    for start in range(step, width, step):
        reduced[:start, start : start + step] = reduced[start : start + step, :start].T
    return reduced

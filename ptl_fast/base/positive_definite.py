"""Inverses and solutions of Gram matrices, in fp32 where that is much faster than fp64.

fp64 has half of fp32's rate on a CPU (less in LAPACK's factorizations), and 1/64 on a GPU that is
not made for it. Gram matrices stay in fp64; here is what costs the cube of their width.

As it is, a Gram matrix of an FFN's activations is too near to singular for fp32: a few neurons have
massive activations, a thousand times those of the others, on the same few tokens, and the ridge
that tells them apart is smaller than fp32's rounding errors of their squares. So the loudest
neurons are factored in fp64: the first steps of a Cholesky factorization with complete pivoting.
What the others have beyond them, their Schur complement S, is scaled to a diagonal of ones, and
only then rounded to fp32 and factored. Whether that was enough is tried on random vectors in fp64;
where it was not, the matrix is factored in fp64, and this is said.

    G = [G11 G12; G21 S + G21 inv(G11) G12],  G11 = L1 L1^T,  G12 = L1 R

Shape suffixes: I width, J the loud neurons, Q the others, H right-hand sides, P probes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ptl_fast.base import console

# up to this width all is done in fp64, which takes a second or two
NARROW = 2048
# CUDA compute capabilities with fp64 at half of fp32's rate (CUDA programming guide, throughput of
# arithmetic instructions); that of others is 1/32 or 1/64
FAST_IN_FP64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
# Share of the neurons that is factored in fp64. In layer 22 of Qwen2.5-Coder-0.5B (width 4864, 3000
# tokens, a ridge of 1e-4, a neuron with 2200 times the mean square) random vectors are missed by
# 0.35 without any, and by 0.002 with 1/19; the inverse's diagonal by at most 60% and 0.03%.
LOUD, BLOCK = 1 / 8, 64
# largest share of random vectors by which S times its inverse may miss them
TOLERANCE = 1e-2
NUM_PROBES = 8
# rows of S that are made at a time
ROWS = 512


class Inverse(NamedTuple):
    """The inverse P of G: P[order_I][:, order_I] = scale_I[:, None] * matrix_II * scale_I."""

    matrix_II: Tensor
    """Contiguous; fp64, or fp32."""
    scale_I: Tensor
    """fp64; ones where the matrix is fp64."""
    order_I: Tensor
    """int64; ascending where the matrix is fp64."""


def working_type(width: int, device: torch.device) -> torch.dtype:
    """In which type matrices of this width are inverted, and rows multiplied, on this device.

    fp64 also where torch was told that products of fp32 matrices may be less exact (TF32, or bf16
    on a CPU): that is the caller's, and is not changed here.
    """
    if width <= NARROW or torch.get_float32_matmul_precision() != "highest":
        return torch.float64
    if device.type == "cuda" and torch.cuda.get_device_capability(device) in FAST_IN_FP64:
        return torch.float64
    return torch.float32


def inverse(gram_II: Tensor, working_type: torch.dtype) -> Inverse:
    """The inverse of a fp64 matrix; takes the memory of one such matrix.

    Raises:
        torch.linalg.LinAlgError: it is not positive definite, in fp64 either.
    """
    if working_type == torch.float32:
        split = _split(gram_II)
        if split is not None:
            found_QQ = _inverted_(split.factor_QQ)
            if _is_right(split, gram_II, found_QQ @ _probes(split).to(found_QQ)):
                return _assembled(split, found_QQ)
            del found_QQ
        del split
        say_fp64(len(gram_II))
    found_II = _inverted_(torch.linalg.cholesky(gram_II))
    diagonal_I = gram_II.diagonal()
    order_I = torch.arange(len(gram_II), device=gram_II.device)
    return Inverse(found_II, torch.ones_like(diagonal_I), order_I)


def solve(gram_II: Tensor, right_IH: Tensor) -> Tensor:
    """X of G X = ``right_IH``, (I, H); all are fp64, and G is factored in the working type.

    Raises:
        torch.linalg.LinAlgError: the matrix is not positive definite, in fp64 either.
    """
    if working_type(len(gram_II), gram_II.device) == torch.float32:
        split = _split(gram_II)
        if split is not None:
            probes_QP = _probes(split).float()
            if _is_right(split, gram_II, torch.cholesky_solve(probes_QP, split.factor_QQ)):
                return _solved(split, right_IH)
        del split
        say_fp64(len(gram_II))
    return torch.cholesky_solve(right_IH, torch.linalg.cholesky(gram_II))


class _Split(NamedTuple):
    """A factorization of G, whose last part is fp32."""

    loud_J: Tensor
    others_Q: Tensor
    lower_JJ: Tensor
    """L1, fp64."""
    across_JQ: Tensor
    """R, fp64."""
    scale_Q: Tensor
    """fp64; scale_Q[:, None] * S * scale_Q has a diagonal of ones."""
    factor_QQ: Tensor
    """That one's Cholesky factor, fp32."""


def _split(gram_II: Tensor) -> _Split | None:
    """Factor G; None where the others' part is not positive definite in fp32."""
    loud_J, rows_JI, left_I = _pivots(gram_II, round(LOUD * len(gram_II)))
    is_other = torch.ones_like(left_I, dtype=torch.bool).index_fill_(0, loud_J, False)
    others_Q = is_other.nonzero()[:, 0]
    across_JQ, scale_Q = rows_JI[:, others_Q], left_I[others_Q].rsqrt()
    width = len(others_Q)
    scaled_QQ = gram_II.new_empty(width, width, dtype=torch.float32)
    # the part on and below the diagonal is all that a Cholesky factorization reads
    for start in range(0, width, ROWS):
        end = min(start + ROWS, width)
        block = gram_II[others_Q[start:end, None], others_Q[:end]]
        block.addmm_(across_JQ[:, start:end].T, across_JQ[:, :end], alpha=-1)
        scaled_QQ[start:end, :end] = block.mul_(scale_Q[start:end, None]).mul_(scale_Q[:end])
    factor_QQ, failed = torch.linalg.cholesky_ex(scaled_QQ)
    if failed:
        return None
    return _Split(loud_J, others_Q, rows_JI[:, loud_J].T.tril(), across_JQ, scale_Q, factor_QQ)


def _pivots(gram_II: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of a Cholesky factorization, BLOCK at a time with the neurons that have most beyond
    those before.

    Returns:
        The neurons, (J,); rows of L^T, (J, I), with G - L L^T zero in these neurons' rows; and the
        diagonal of G - L L^T, (I,).
    """
    left_I, rows_JI = gram_II.diagonal().clone(), gram_II.new_zeros(count, len(gram_II))
    loud_J = torch.empty(count, dtype=torch.int64, device=gram_II.device)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        next_B = left_I.argsort(descending=True, stable=True)[: end - start]
        before = rows_JI[:start]
        rows_BI = gram_II[next_B] - before[:, next_B].T @ before
        lower_BB = torch.linalg.cholesky(rows_BI[:, next_B])
        rows_JI[start:end] = torch.linalg.solve_triangular(lower_BB, rows_BI, upper=False)
        loud_J[start:end] = next_B
        left_I -= rows_JI[start:end].square().sum(0)
        left_I[loud_J[:end]] = 0
    return loud_J, rows_JI, left_I


def _assembled(split: _Split, inverse_QQ: Tensor) -> Inverse:
    """G's inverse from that of S, which is scaled."""
    num_loud = len(split.loud_J)
    order_I = torch.cat([split.loud_J, split.others_Q])
    found_II = inverse_QQ.new_empty(len(order_I), len(order_I))
    found_II[num_loud:, num_loud:] = inverse_QQ
    # what the loud neurons take of the others, inv(G11) G12
    taken_JQ = _back(split.lower_JJ, split.across_JQ) * split.scale_Q
    through_JQ = taken_JQ.to(inverse_QQ) @ inverse_QQ
    own_JJ = torch.cholesky_inverse(split.lower_JJ) + through_JQ.double() @ taken_JQ.T
    scale_J = own_JJ.diagonal().sqrt()
    found_II[:num_loud, :num_loud] = own_JJ / scale_J[:, None] / scale_J
    found_II[:num_loud, num_loud:] = -through_JQ / scale_J[:, None]
    found_II[num_loud:, :num_loud] = found_II[:num_loud, num_loud:].T
    return Inverse(found_II, torch.cat([scale_J, split.scale_Q]), order_I)


def _solved(split: _Split, right_IH: Tensor) -> Tensor:
    """X of G X = ``right_IH``, fp64: through the loud neurons, the others, and back."""
    first_JH = torch.linalg.solve_triangular(split.lower_JJ, right_IH[split.loud_J], upper=False)
    scale_Q1 = split.scale_Q[:, None]
    rest_QH = (right_IH[split.others_Q] - split.across_JQ.T @ first_JH) * scale_Q1
    found_QH = torch.cholesky_solve(rest_QH.float(), split.factor_QQ).double() * scale_Q1
    found_IH = torch.empty_like(right_IH)
    found_IH[split.others_Q] = found_QH
    found_IH[split.loud_J] = _back(split.lower_JJ, first_JH - split.across_JQ @ found_QH)
    return found_IH


def _back(lower_JJ: Tensor, right: Tensor) -> Tensor:
    """inv(L1^T) times ``right``."""
    return torch.linalg.solve_triangular(lower_JJ.T, right, upper=True)


def _inverted_(factor: Tensor) -> Tensor:
    """The inverse of L L^T, in the memory of L."""
    # symmetric, so its transpose, whose memory is in the order of rows, is the same
    return torch.cholesky_inverse(factor, out=factor).mT.contiguous()


def _is_right(split: _Split, gram_II: Tensor, found_QP: Tensor) -> bool:
    """Whether S times ``found_QP``, what its inverse makes of the probes, is these, in fp64."""
    probes_QP, scale_Q1 = _probes(split), split.scale_Q[:, None]
    found_IP = gram_II.new_zeros(len(gram_II), NUM_PROBES)
    found_IP[split.others_Q] = found_QP.double() * scale_Q1
    product_QP = (gram_II @ found_IP)[split.others_Q]
    product_QP -= split.across_JQ.T @ (split.across_JQ @ found_IP[split.others_Q])
    return bool((scale_Q1 * product_QP - probes_QP).norm() <= TOLERANCE * probes_QP.norm())


def _probes(split: _Split) -> Tensor:
    """Random signs, the same on every rank, (Q, P) fp64."""
    size = (len(split.others_Q), NUM_PROBES)
    signs = torch.randint(0, 2, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return signs.to(split.scale_Q)


def say_fp64(width: int) -> None:
    """Name the slower path."""
    console.say(
        f"a Gram matrix of width {width} is too near to singular for float32: it is factored in"
        " float64, which is slower; a larger --ridge avoids this"
    )

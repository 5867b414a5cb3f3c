"""What a neuron's column can be at best: torch's least squares on the activations themselves."""

import torch
from torch import Tensor

from ptl_fast.data import packing

# as a fraction of the mean square of a neuron's activations
RIDGE = 1e-4


def activations(num_tokens: int, width: int, rank: int, seed: int) -> Tensor:
    """Float64 activations that mostly lie in few directions, as an FFN's do."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(num_tokens, rank, generator=generator) @ torch.randn(
        rank, width, generator=generator
    )
    return (low + 0.1 * torch.randn(num_tokens, width, generator=generator)).double()


def projection(hidden: int, width: int) -> Tensor:
    """A float64 down projection whose columns are equally long."""
    return torch.nn.functional.normalize(
        torch.randn(hidden, width, generator=torch.Generator().manual_seed(4)).double(), dim=0
    )


def ridge(activations_TI: Tensor) -> Tensor:
    """Rows that add the ridge to a Gram matrix: least squares on them too is what a ridge means."""
    mean_square = activations_TI.square().sum(0).mean()
    return (RIDGE * mean_square).sqrt() * torch.eye(activations_TI.shape[1], dtype=torch.float64)


def best_columns(activations_TI: Tensor, down_HI: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """The kept neurons' columns by torch's least squares on the tokens themselves, and how far
    their output is off.
    """
    rows_TI = torch.cat([activations_TI, ridge(activations_TI)])
    target_TH = rows_TI @ down_HI.T
    columns_KH = torch.linalg.lstsq(rows_TI[:, kept], target_TH).solution
    return columns_KH.T, float((rows_TI[:, kept] @ columns_KH - target_TH).norm())


def gram(activations_TI: Tensor) -> Tensor:
    rows_TI = torch.cat([activations_TI, ridge(activations_TI)])
    return rows_TI.T @ rows_TI


def long_documents() -> packing.PackedTokens:
    """More tokens than a tiny model's FFN has neurons, with some padding."""
    generator = torch.Generator().manual_seed(5)
    return packing.pack(
        [
            torch.randint(2, 384, (count,), generator=generator).tolist()
            for count in (60, 33, 47, 81)
        ],
        96,
        1,
    )


def many_documents() -> packing.PackedTokens:
    """Short ones, a few of which choose the ridge."""
    generator = torch.Generator().manual_seed(6)
    lengths = torch.randint(5, 30, (40,), generator=generator).tolist()
    documents = [torch.randint(2, 384, (each,), generator=generator).tolist() for each in lengths]
    return packing.pack(documents, 96, 1)

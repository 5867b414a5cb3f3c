"""The change of the residual stream equals its twin in float64, on every path."""

import pytest
import torch
from torch import Tensor

from ptl_kernels import reference, residual_change
from ptl_kernels.residual_change import BLOCKS, launch
from support.triton import TRITON_DEVICE, TRITON_DTYPES

SHAPES = [(1, 1), (63, 100), (130, 33), (7, BLOCKS["BLOCK_H"] + 5)]
# 21 rows make 6 blocks of rows, the last one of 1: the interpreter's time grows with the rows.
TRITON_SHAPES = [(1, 1), (21, 100), (7, BLOCKS["BLOCK_H"] + 5)]
RELATIVE = 5e-6  # float32 sums over one hidden vector and over a block of tokens


def make_inputs(
    num_tokens: int, hidden_size: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    before = torch.randn(num_tokens, hidden_size, device=device).to(dtype)
    after = (before + 0.3 * torch.randn_like(before)).to(dtype)
    mask = torch.rand(num_tokens, device=device) < 0.6
    mask[0] = True
    before[~mask] = float("nan")
    return before, after, mask


def check(out_3: Tensor, before: Tensor, after: Tensor, mask: Tensor | None) -> None:
    expected = reference.residual_change(before.double(), after.double(), mask)
    num_tokens = len(before) if mask is None else int(mask.sum())
    assert ((out_3 - 1.0 - expected).abs() <= RELATIVE * expected.abs().clamp_min(num_tokens)).all()


@pytest.mark.parametrize(("num_tokens", "hidden_size"), TRITON_SHAPES)
@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_triton(num_tokens: int, hidden_size: int, dtype: torch.dtype, masked: bool) -> None:
    before, after, mask = make_inputs(num_tokens, hidden_size, dtype, TRITON_DEVICE)
    if not masked:
        before, mask = before.nan_to_num(), None
    out_3 = torch.ones(3, dtype=torch.float64, device=TRITON_DEVICE)
    launch(before, after, out_3, mask)
    check(out_3, before, after, mask)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: the compiled kernel cannot run"
)
def test_cuda_op() -> None:
    before, after, mask = make_inputs(8195, 4096, torch.bfloat16, "cuda")
    out_3 = torch.ones(3, dtype=torch.float64, device="cuda")
    residual_change(before, after, out_3, mask)
    check(out_3, before, after, mask)


@pytest.mark.parametrize(("num_tokens", "hidden_size"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("cpu_path")
def test_cpu(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
    for masked in (False, True):
        before, after, mask = make_inputs(num_tokens, hidden_size, dtype, "cpu")
        if not masked:
            before, mask = before.nan_to_num(), None
        out_3 = torch.ones(3, dtype=torch.float64)
        residual_change(before, after, out_3, mask)
        check(out_3, before, after, mask)


def test_leading_dimensions_and_other_strides() -> None:
    before, after = torch.randn(2, 5, 16), torch.randn(16, 5, 2).permute(2, 1, 0)
    out_3 = torch.ones(3, dtype=torch.float64)
    residual_change(before, after, out_3)
    check(out_3, before.reshape(-1, 16), after.reshape(-1, 16), None)


def test_zero_vectors_have_no_direction() -> None:
    out_3 = torch.zeros(3, dtype=torch.float64)
    residual_change(torch.zeros(4, 8), torch.zeros(4, 8), out_3)
    assert out_3.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": torch.ones(4, 7)}, "must be alike"),
        ({"after": torch.ones(4, 6, dtype=torch.bfloat16)}, "must be alike"),
        ({"out_3": torch.zeros(3)}, "out_3 must be fp64"),
        ({"out_3": torch.zeros(4, dtype=torch.float64)}, "out_3 must be fp64"),
        ({"token_mask": torch.ones(3, dtype=torch.bool)}, "one entry a token"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {
        "before": torch.ones(4, 6),
        "after": torch.ones(4, 6),
        "out_3": torch.zeros(3, dtype=torch.float64),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        residual_change(**arguments)

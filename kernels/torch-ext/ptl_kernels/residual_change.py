"""How much a decoder layer changes the residual stream: three sums over the tokens, with each
tensor read once.

Shape suffixes: T tokens, H hidden size, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cpu, reference
from ._common import add_splits, is_recomputation, runs_on_triton

BLOCKS = {"BLOCK_T": 4, "BLOCK_H": 1024, "num_warps": 8, "num_stages": 2}  # not tuned on a GPU yet


@triton.jit
def _residual_change_kernel(
    before_ptr, after_ptr, partials_ptr, mask_ptr,
    num_tokens, hidden_size, before_stride, after_stride,
    HAS_MASK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_T whole rows, BLOCK_H columns at a time, and writes its three sums to
    partials[program, :].
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    counts = rows < num_tokens
    if HAS_MASK:
        counts = counts & (tl.load(mask_ptr + rows, mask=counts, other=0) != 0)
    change = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    dot = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    norm_before = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    norm_after = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    for start in range(0, hidden_size, BLOCK_H):
        columns = start + tl.arange(0, BLOCK_H)
        inside = counts[:, None] & (columns < hidden_size)[None, :]
        before = tl.load(
            before_ptr + rows[:, None] * before_stride + columns[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        after = tl.load(
            after_ptr + rows[:, None] * after_stride + columns[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        change += (after - before) * (after - before)
        dot += before * after
        norm_before += before * before
        norm_after += after * after
    # One number a row from here on. Rows that do not count were loaded as zeros, and give zeros.
    squared = tl.sum(change, 1)
    product = tl.sqrt(tl.sum(norm_before, 1)) * tl.sqrt(tl.sum(norm_after, 1))
    # A zero vector has no direction: its cosine counts as 0. NaN comes through.
    cosine = tl.where(product == 0, 0.0, tl.sum(dot, 1) / tl.where(product == 0, 1.0, product))
    to = partials_ptr + tl.program_id(0) * 3
    tl.store(to, tl.sum(tl.sqrt(squared), 0))
    tl.store(to + 1, tl.sum(squared, 0))
    tl.store(to + 2, tl.sum(cosine, 0))


@torch.no_grad()
def residual_change(
    before: Tensor, after: Tensor, out_3: Tensor, token_mask: Tensor | None = None
) -> None:
    """Add to ``out_3`` the sums over tokens of ||after - before||, of its square, and of
    cosine(before, after).

    The mean of the first is Eq. 5 of arXiv 2602.04919; one minus the mean of the third is block
    influence (ShortGPT, arXiv 2403.03853). Give each layer a row of one (num_layers, 3) tensor: the
    host then waits for the device once, when it reads the tensor. The order of additions is fixed:
    the same input gives the same bits. A forward pass that gradient checkpointing repeats adds
    nothing.

    Args:
        before: the layer's input, (..., hidden_size), fp32/bf16/fp16, last dimension contiguous.
        after: the layer's output, same shape, dtype and device.
        out_3: (3,) fp64 on the same device, contiguous.
        token_mask: True for the tokens that count, (...) bool; None counts all. The others may hold
            anything.

    Raises:
        ValueError: shapes, types or devices do not fit.

    Reads each tensor once: 2 * num_tokens * hidden_size * itemsize bytes. CUDA: Triton; CPU: csrc,
    for fp32 and bf16; else plain PyTorch.
    """
    if (
        not before.dim()
        or before.shape != after.shape
        or before.dtype != after.dtype
        or before.device != after.device
    ):
        raise ValueError(
            f"before is {before.dtype} {tuple(before.shape)}, after {after.dtype}"
            f" {tuple(after.shape)}; they must be alike"
        )
    if (
        out_3.shape != (3,)
        or out_3.dtype != torch.float64
        or out_3.device != before.device
        or not out_3.is_contiguous()
    ):
        raise ValueError(
            f"out_3 must be fp64 of shape (3,) on {before.device}; got {out_3.dtype}"
            f" {tuple(out_3.shape)}"
        )
    if token_mask is not None and (
        token_mask.dtype != torch.bool or token_mask.numel() * before.shape[-1] != before.numel()
    ):
        raise ValueError(
            f"token_mask must be bool with one entry a token of before, {tuple(before.shape)}; got"
            f" {tuple(token_mask.shape)}"
        )
    if is_recomputation() or not before.numel():
        return
    before_TH, after_TH = (_rows(tensor) for tensor in (before, after))
    mask_T = None if token_mask is None else token_mask.reshape(-1).contiguous()
    if runs_on_triton(before):
        launch(before_TH, after_TH, out_3, mask_T)
    elif cpu.takes(before, after):
        cpu.residual_change(before_TH, after_TH, out_3, mask_T)
    else:
        out_3 += reference.residual_change(before_TH, after_TH, mask_T)


def launch(before_TH: Tensor, after_TH: Tensor, out_3: Tensor, mask_T: Tensor | None) -> None:
    """Run the Triton kernels; the arguments are checked already."""
    num_tokens, hidden_size = before_TH.shape
    num_programs = triton.cdiv(num_tokens, BLOCKS["BLOCK_T"])
    partials_1P3 = torch.empty(1, num_programs, 3, dtype=torch.float32, device=before_TH.device)
    with torch.cuda.device_of(before_TH):
        _residual_change_kernel[(num_programs,)](
            before_TH, after_TH, partials_1P3, mask_T,
            num_tokens, hidden_size, before_TH.stride(0), after_TH.stride(0),
            HAS_MASK=mask_T is not None, enable_fp_fusion=True, **BLOCKS,
        )  # fmt: skip
    # The three sums take the place of three neurons of one statistic.
    add_splits(partials_1P3, (out_3,))


def _rows(tensor: Tensor) -> Tensor:
    """(..., H) as (T, H), copied only where there is no such view."""
    rows_TH = tensor.reshape(-1, tensor.shape[-1])
    return rows_TH if rows_TH.stride(1) == 1 else rows_TH.contiguous()

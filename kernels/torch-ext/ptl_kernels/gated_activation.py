"""act(gate) * up of a gated feed-forward network (SwiGLU, GeGLU), or act(gate) of one without a
gate (GELU, ReLU), forward and backward; the forward pass also takes each neuron's sums over the
tokens.

Shape suffixes: T tokens, I FFN width, S splits of the tokens, N statistics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cpu, reference
from ._common import (
    ACTIVATION_CODES,
    Activation,
    Mode,
    NeuronSums,
    activate,
    activate_with_slope,
    add_splits,
    as_rows,
    check_arguments,
    describe,
    gate_times_up,
    is_recomputation,
    runs_on_triton,
)

# Not tuned on a GPU yet.
FORWARD = {"BLOCK_T": 4, "BLOCK_I": 512, "num_warps": 8, "num_stages": 2}
BACKWARD = {"BLOCK_T": 2, "BLOCK_I": 1024, "num_warps": 8, "num_stages": 2}
# Tokens that one program sums in fp32. Rounding errors stay small (fp64 adds the splits), and 8192
# tokens of width 14336 make 32 splits x 28 column blocks = 896 programs.
SPLIT_TOKENS = 256


@triton.jit
def _gated_activation_kernel(
    gate_ptr, up_ptr, out_ptr, partials_ptr, mask_ptr,
    num_tokens, width, split_tokens, gate_stride, up_stride, out_stride,
    ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, HAS_UP: tl.constexpr,
    NUM_STATISTICS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """A program walks down split_tokens rows of BLOCK_I columns, BLOCK_T rows at a time, and keeps
    its columns' sums in registers. They become partials[statistic, split, column].
    """
    split = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    square = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
    total = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
    absolute = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
    maximum = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
    first = split * split_tokens
    last = tl.minimum(first + split_tokens, num_tokens)
    for start in range(first, last, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        inside = (rows < last)[:, None] & (columns < width)[None, :]
        wide_rows = rows.to(tl.int64)[:, None]  # tokens * width passes 2^31
        gate = tl.load(
            gate_ptr + wide_rows * gate_stride + columns[None, :], mask=inside, other=0.0
        )
        if HAS_UP:
            up = tl.load(up_ptr + wide_rows * up_stride + columns[None, :], mask=inside, other=0.0)
            out = gate_times_up(
                gate.to(tl.float32),
                up.to(tl.float32),
                ACTIVATION,
                MATCH_HF,
                out_ptr.dtype.element_ty,
            )
        else:
            out = activate(gate.to(tl.float32), ACTIVATION).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + wide_rows * out_stride + columns[None, :], out, mask=inside)
        if NUM_STATISTICS > 0:
            # A token that does not count gets its output too, so it was loaded, and it may hold
            # anything, NaN included: select, since multiplying by zero would keep a NaN.
            counts = inside
            if HAS_MASK:
                counts = (
                    inside & (tl.load(mask_ptr + rows, mask=rows < last, other=0) != 0)[:, None]
                )
            value = tl.where(counts, out.to(tl.float32), 0.0)
            square += value * value
            if NUM_STATISTICS > 1:
                total += value
                absolute += tl.abs(value)
                maximum = tl.maximum(maximum, tl.abs(value))
    if NUM_STATISTICS > 0:
        to = partials_ptr + split * width + columns
        step = tl.num_programs(0) * width
        tl.store(to, tl.sum(square, 0), mask=columns < width)
        if NUM_STATISTICS > 1:
            # tl.maximum and tl.max drop a NaN; the sum of |a| keeps it.
            all_absolute = tl.sum(absolute, 0)
            largest = tl.where(all_absolute != all_absolute, all_absolute, tl.max(maximum, 0))
            tl.store(to + step, tl.sum(total, 0), mask=columns < width)
            tl.store(to + 2 * step, all_absolute, mask=columns < width)
            tl.store(to + 3 * step, largest, mask=columns < width)


@triton.jit
def _gated_activation_backward_kernel(
    grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr,
    num_tokens, width, grad_stride, gate_stride, up_stride, grad_gate_stride, grad_up_stride,
    ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, HAS_UP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """With a = act(gate) and y = a * up: grad_up = grad * a and grad_gate = grad * up * act'(gate),
    computed in fp32 and rounded once, or with MATCH_HF at each step of eager autograd. Without up
    there is grad_gate = grad * act'(gate) alone.

    A program takes BLOCK_T rows of BLOCK_I columns.
    """
    dtype = gate_ptr.dtype.element_ty
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = (rows < num_tokens)[:, None] & (columns < width)[None, :]
    columns, rows = columns[None, :], rows[:, None]
    grad = tl.load(grad_ptr + rows * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + rows * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    value, slope = activate_with_slope(gate, ACTIVATION)
    to_active = grad
    if HAS_UP:
        up = tl.load(up_ptr + rows * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
        to_active = grad * up
        if MATCH_HF:
            value, to_active = value.to(dtype).to(tl.float32), to_active.to(dtype).to(tl.float32)
        tl.store(
            grad_up_ptr + rows * grad_up_stride + columns, (grad * value).to(dtype), mask=inside
        )
    tl.store(
        grad_gate_ptr + rows * grad_gate_stride + columns,
        (to_active * slope).to(dtype),
        mask=inside,
    )


def gated_activation(
    gate: Tensor,
    up: Tensor | None,
    activation: Activation | None = "silu",
    *,
    sums: NeuronSums | None = None,
    token_mask: Tensor | None = None,
    mode: Mode = "fast",
    out: Tensor | None = None,
) -> Tensor:
    """Return a = activation(gate) * up, and add each neuron's sums over the tokens to ``sums``.

    sums.square[i] += sum_t a[t, i]^2 (Eq. 4 of arXiv 2602.04919 is its root), and so on for the
    other sums that are there, of the values as returned. Added in fp32 over at most 256 tokens and
    in fp64 beyond, in a fixed order: the same input gives the same bits.

    Differentiable once. Keeps gate and up for the backward pass, and nothing else. A forward pass
    that gradient checkpointing repeats adds nothing to the sums.

    Args:
        gate: gate projection, (..., width), fp32/bf16/fp16, last dimension contiguous.
        up: up projection, same shape, dtype and device; both may be halves of one tensor. None
            where there is no gate: ``gate`` is then the only projection, and a = activation(gate).
        activation: silu, gelu_tanh, gelu, relu, relu2 (its square), or None where gate is activated
            already.
        sums: where to add, on the same device; None takes no statistics.
        token_mask: True for the tokens that count, (...) bool; None counts all. The others may hold
            anything.
        mode: fast rounds once, at the end; match_hf rounds as transformers' modules do, and on a
            CPU is bit-equal to them.
        out: where to write, like gate, for use without gradients; may be ``gate`` itself.

    Returns:
        (..., width) of gate's dtype.

    Raises:
        ValueError: shapes, types, devices or strides do not fit, or ``out`` comes with gradients.

    Reads gate and up once and writes once: 3 * num_tokens * width * itemsize bytes. The backward
    pass reads three tensors and writes two: 5 * num_tokens * width * itemsize bytes; without up
    there are 2 and 3. CUDA: Triton; CPU: csrc, for fp32 and bf16 (it activates silu and gelu_tanh
    itself; for others torch activates, and csrc multiplies and takes the sums); else plain PyTorch
    (fp64, and fp16 on a CPU).
    """
    check_arguments(gate, up, activation, sums, token_mask, mode)
    gate_TI, up_TI = as_rows(gate, "gate"), None if up is None else as_rows(up, "up")
    mask_T = None if token_mask is None else token_mask.reshape(-1).contiguous()
    if is_recomputation():
        sums = None
    needs_grad = gate.requires_grad or (up is not None and up.requires_grad)
    if torch.is_grad_enabled() and needs_grad:
        if out is not None:
            raise ValueError("out= cannot be used where gradients are needed")
        return _GatedActivation.apply(gate_TI, up_TI, activation, sums, mask_T, mode).view(
            gate.shape
        )
    if out is None:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    elif out.shape != gate.shape or out.dtype != gate.dtype or out.device != gate.device:
        raise ValueError(f"out is {describe(out)}; it must be like gate, {describe(gate)}")
    out_TI = gate_TI if out is gate else as_rows(out, "out")
    if out_TI.stride(0) < out_TI.shape[1] and len(out_TI) > 1:
        raise ValueError(f"out has strides {out.stride()}: its rows overlap")
    if gate.numel():
        _forward(gate_TI, up_TI, out_TI, activation, sums, mask_T, mode)
    return out


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate_TI: Tensor,
        up_TI: Tensor | None,
        activation: Activation | None,
        sums: NeuronSums | None,
        mask_T: Tensor | None,
        mode: Mode,
    ) -> Tensor:
        ctx.save_for_backward(gate_TI, up_TI)
        ctx.activation, ctx.mode = activation, mode
        out_TI = torch.empty(gate_TI.shape, dtype=gate_TI.dtype, device=gate_TI.device)
        if out_TI.numel():
            _forward(gate_TI, up_TI, out_TI, activation, sums, mask_T, mode)
        return out_TI

    @staticmethod
    def backward(ctx: Any, grad_TI: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "gated_activation has no second derivative (create_graph=True); use"
                " ptl_kernels.reference"
            )
        gate_TI, up_TI = ctx.saved_tensors
        if grad_TI.stride(-1) != 1:
            grad_TI = grad_TI.contiguous()
        if not gate_TI.numel():
            grad_up_TI = None if up_TI is None else torch.zeros_like(up_TI)
            return torch.zeros_like(gate_TI), grad_up_TI, None, None, None, None
        return *_backward(grad_TI, gate_TI, up_TI, ctx.activation, ctx.mode), None, None, None, None


def _forward(
    gate_TI: Tensor,
    up_TI: Tensor | None,
    out_TI: Tensor,
    activation: Activation | None,
    sums: NeuronSums | None,
    mask_T: Tensor | None,
    mode: Mode,
) -> None:
    totals = sums.tensors() if sums else ()
    if runs_on_triton(gate_TI):
        launch_forward(gate_TI, up_TI, out_TI, activation, totals, mask_T, mode)
    elif cpu.takes(gate_TI, out_TI, gate_TI if up_TI is None else up_TI):
        if up_TI is None:
            # One row of ones stands for all: it stays in the nearest cache.
            up_TI = gate_TI.new_ones(1, gate_TI.shape[1]).expand(gate_TI.shape)
        if mode == "match_hf" or activation not in cpu.ACTIVATIONS:
            # Bit-equal to transformers only with torch's own exponential: torch activates, csrc
            # multiplies.
            wide_TI = gate_TI if mode == "match_hf" else gate_TI.float()
            gate_TI, activation = reference.activate(wide_TI, activation).to(gate_TI.dtype), None
        cpu.gated_activation(gate_TI, up_TI, out_TI, activation, totals, mask_T)
    else:
        out_TI.copy_(reference.gated_activation(gate_TI, up_TI, activation, mode))
        reference.add_neuron_sums_(totals, out_TI, mask_T)


def _backward(
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor | None,
    activation: Activation | None,
    mode: Mode,
) -> tuple[Tensor, Tensor | None]:
    on_cpu = mode == "fast" and activation in cpu.ACTIVATIONS and cpu.takes(gate_TI)
    if runs_on_triton(gate_TI) or (on_cpu and up_TI is not None):
        grad_gate_TI = gate_TI.new_empty(gate_TI.shape)
        grad_up_TI = None if up_TI is None else gate_TI.new_empty(gate_TI.shape)
        if runs_on_triton(gate_TI):
            launch_backward(grad_TI, gate_TI, up_TI, grad_gate_TI, grad_up_TI, activation, mode)
        else:
            assert up_TI is not None
            assert grad_up_TI is not None
            cpu.gated_activation_backward(
                grad_TI, gate_TI, up_TI, grad_gate_TI, grad_up_TI, activation
            )
        return grad_gate_TI, grad_up_TI
    with torch.enable_grad():
        leaves = [each.detach().requires_grad_() for each in (gate_TI, up_TI) if each is not None]
        up_TI = None if up_TI is None else leaves[1]
        out_TI = reference.gated_activation(leaves[0], up_TI, activation, mode)
    grad_gate_TI, *others = torch.autograd.grad(out_TI, leaves, grad_TI)
    return grad_gate_TI, others[0] if others else None


def launch_forward(
    gate_TI: Tensor,
    up_TI: Tensor | None,
    out_TI: Tensor,
    activation: Activation | None,
    totals: tuple[Tensor, ...],
    mask_T: Tensor | None,
    mode: Mode,
) -> None:
    """Run the Triton kernels. The arguments are checked already; totals are (I,) fp64 each."""
    num_tokens, width = gate_TI.shape
    num_splits = triton.cdiv(num_tokens, SPLIT_TOKENS)
    partials_NSI = torch.empty(
        len(totals), num_splits, width, dtype=torch.float32, device=gate_TI.device
    )
    with torch.cuda.device_of(gate_TI):
        _gated_activation_kernel[(num_splits, triton.cdiv(width, FORWARD["BLOCK_I"]))](
            gate_TI, up_TI, out_TI, partials_NSI, mask_T,
            num_tokens, width, SPLIT_TOKENS, gate_TI.stride(0), _stride(up_TI), out_TI.stride(0),
            ACTIVATION=ACTIVATION_CODES[activation], MATCH_HF=mode == "match_hf",
            HAS_UP=up_TI is not None,
            NUM_STATISTICS=len(totals), HAS_MASK=mask_T is not None,
            enable_fp_fusion=True, **FORWARD,
        )  # fmt: skip
    add_splits(partials_NSI, totals)


def launch_backward(
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor | None,
    grad_gate_TI: Tensor,
    grad_up_TI: Tensor | None,
    activation: Activation | None,
    mode: Mode,
) -> None:
    """Run the Triton kernel; the arguments are checked already. Without up there is no grad_up."""
    num_tokens, width = gate_TI.shape
    tensors = grad_TI, gate_TI, up_TI, grad_gate_TI, grad_up_TI
    grid = (triton.cdiv(num_tokens, BACKWARD["BLOCK_T"]), triton.cdiv(width, BACKWARD["BLOCK_I"]))
    with torch.cuda.device_of(gate_TI):
        _gated_activation_backward_kernel[grid](
            *tensors, num_tokens, width, *map(_stride, tensors),
            ACTIVATION=ACTIVATION_CODES[activation], MATCH_HF=mode == "match_hf",
            HAS_UP=up_TI is not None,
            enable_fp_fusion=True, **BACKWARD,
        )  # fmt: skip


def _stride(tensor_TI: Tensor | None) -> int:
    """Elements from one row to the next; 0 for a tensor that is not there."""
    return 0 if tensor_TI is None else tensor_TI.stride(0)

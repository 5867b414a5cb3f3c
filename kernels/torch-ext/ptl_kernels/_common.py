"""What several operations share: the activation in Triton, each neuron's sums and their second
reduction, and checks of arguments.

Shape suffixes: T tokens, I FFN width, S splits of the tokens, N statistics.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2"]
Mode = Literal["fast", "match_hf"]

ACTIVATION_CODES = {None: 0, "silu": 1, "gelu_tanh": 2, "gelu": 3, "relu": 4, "relu2": 5}
"""What the kernels' ACTIVATION stands for; relu2 is the square of relu."""

SUM = {"BLOCK_S": 32, "BLOCK_I": 128, "num_warps": 4, "num_stages": 1}  # not tuned on a GPU yet


@dataclass
class NeuronSums:
    """Sums over tokens of each neuron's activation a, (width,) fp64 each; calls add to them."""

    square: Tensor
    """sum_t a[t]^2"""
    sum: Tensor | None = None
    """sum_t a[t]"""
    absolute: Tensor | None = None
    """sum_t |a[t]|"""
    maximum: Tensor | None = None
    """max_t |a[t]|"""

    @classmethod
    def zeros(cls, width: int, device: torch.device | str, every: bool = False) -> "NeuronSums":
        """Sums of no tokens: the squares only, or all four with ``every``."""
        return cls(
            *(
                torch.zeros(width, dtype=torch.float64, device=device)
                for _ in range(4 if every else 1)
            )
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """(square,) or (square, sum, absolute, maximum)."""
        if self.sum is None or self.absolute is None or self.maximum is None:
            return (self.square,)
        return self.square, self.sum, self.absolute, self.maximum


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gelu_argument(x):
    """The y for which GELU by tanh is x * sigmoid(y): 2 sqrt(2 / pi) (x + 0.044715 x^3), because
    0.5 (1 + tanh(z)) is sigmoid(2 z).
    """
    return 1.5957691216057308 * (x + 0.044715 * x * x * x)


@triton.jit
def normal_below(x):
    """The share of a standard normal distribution below x: GELU is x * normal_below(x)."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of fp32 values, by its code."""
    if ACTIVATION == 0:
        return x
    elif ACTIVATION == 1:
        return x * sigmoid(x)
    elif ACTIVATION == 2:
        return x * sigmoid(gelu_argument(x))
    elif ACTIVATION == 3:
        return x * normal_below(x)
    else:
        # a comparison, and no maximum, which would drop a NaN
        positive = tl.where(x < 0, 0.0, x)
        return positive if ACTIVATION == 4 else positive * positive


@triton.jit
def activate_with_slope(x, ACTIVATION: tl.constexpr):
    """The activation of fp32 values and its derivative, by its code."""
    value, slope = x, tl.full(x.shape, 1.0, tl.float32)
    if ACTIVATION == 1 or ACTIVATION == 2:
        # Both activations are x * s(u), s the sigmoid: u = x for SiLU, u = gelu_argument(x) for
        # GELU. The derivative is s + s (1 - s) * inner, with inner = x * du/dx.
        argument, inner = x, x
        if ACTIVATION == 2:
            argument = gelu_argument(x)
            inner = 1.5957691216057308 * (x + 3 * 0.044715 * x * x * x)
        share = sigmoid(argument)
        bend = share * (1 - share)
        # Where the sigmoid saturates the cube in inner may be infinite, and 0 * inf is NaN.
        value, slope = x * share, share + tl.where(bend == 0, 0.0, bend * inner)
    elif ACTIVATION == 3:
        below = normal_below(x)
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        value, slope = x * below, below + x * density
    elif ACTIVATION == 4:
        value, slope = tl.where(x < 0, 0.0, x), tl.where(x <= 0, 0.0, 1.0)
    elif ACTIVATION == 5:
        positive = tl.where(x < 0, 0.0, x)
        value, slope = positive * positive, 2 * positive
    return value, slope


@triton.jit
def gate_times_up(gate, up, ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, dtype: tl.constexpr):
    """activation(gate) * up of fp32 values, in dtype. Rounded once, or with MATCH_HF also after the
    activation, as transformers' separate modules round.
    """
    active = activate(gate, ACTIVATION)
    if MATCH_HF:
        active = active.to(dtype).to(tl.float32)
    return (active * up).to(dtype)


@triton.jit
def _add_total(out_ptr, columns, total, inside):
    """out[i] += sum_s total[s, i]"""
    tl.store(
        out_ptr + columns,
        tl.load(out_ptr + columns, mask=inside) + tl.sum(total, 0),
        mask=inside,
    )


@triton.jit
def _add_splits_kernel(partials_ptr, out_0_ptr, out_1_ptr, out_2_ptr, out_3_ptr, num_splits, width,
                       BLOCK_S: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """out_n[i] += sum_s partials[n, s, i] in fp64, or for n = 3 the maximum with all of them.

    A program takes one statistic of BLOCK_I columns, BLOCK_S splits at a time.
    """
    columns = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    statistic = tl.program_id(1)
    inside = columns < width
    total = tl.zeros((BLOCK_S, BLOCK_I), tl.float64)
    for start in range(0, num_splits, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        at = partials_ptr + (statistic * num_splits + splits)[:, None] * width + columns[None, :]
        part = tl.load(at, mask=(splits < num_splits)[:, None] & inside[None, :], other=0.0).to(
            tl.float64
        )
        if statistic == 3:
            # A comparison with NaN is false: keep a NaN of total by asking for it. One of part
            # comes through by itself.
            total = tl.where((total != total) | (total > part), total, part)
        else:
            total += part
    if statistic == 0:
        _add_total(out_0_ptr, columns, total, inside)
    elif statistic == 1:
        _add_total(out_1_ptr, columns, total, inside)
    elif statistic == 2:
        _add_total(out_2_ptr, columns, total, inside)
    else:
        before = tl.load(out_3_ptr + columns, mask=inside)
        # tl.max drops a NaN. The sum keeps it, and is NaN for no other reason: maxima of |a| are
        # not negative, so no infinities cancel.
        all_total = tl.sum(total, 0)
        largest = tl.where(all_total != all_total, all_total, tl.max(total, 0))
        tl.store(
            out_3_ptr + columns,
            tl.where((before != before) | (before > largest), before, largest),
            mask=inside,
        )


def add_splits(partials_NSI: Tensor, totals: tuple[Tensor, ...]) -> None:
    """The second pass of a two-pass reduction: totals[n] += partials[n].sum(0), in fp64 and in a
    fixed order, without atomics; a fourth total takes the maximum instead.

    Args:
        partials_NSI: what the first pass left, (num_statistics, num_splits, width) fp32 on CUDA,
            contiguous. A maximum's must not be negative.
        totals: none to four of (width,) fp64, contiguous.

    Reads num_statistics * num_splits * width * 4 bytes: with splits of 256 tokens, each
    statistic adds 1/256 to what a first pass over bf16 gate and up reads.
    """
    if not totals:
        return
    _, num_splits, width = partials_NSI.shape
    # The kernel takes four pointers; programs of a statistic that is not there are not started.
    pointers = (*totals, *[totals[0]] * (4 - len(totals)))
    grid = (triton.cdiv(width, SUM["BLOCK_I"]), len(totals))
    with torch.cuda.device_of(partials_NSI):
        _add_splits_kernel[grid](
            partials_NSI, *pointers, num_splits, width, enable_fp_fusion=True, **SUM
        )


def is_recomputation() -> bool:
    """Whether a forward pass that runs now is one that gradient checkpointing repeats: its tokens
    are counted already.

    It runs inside autograd's backward pass, which is when this id is not -1; torch.utils.checkpoint
    asks the same.
    """
    return torch._C._current_graph_task_id() != -1


def runs_on_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels that read and write element by element take this tensor."""
    return tensor.is_cuda and tensor.dtype != torch.float64


def check_arguments(
    gate: Tensor,
    up: Tensor | None,
    activation: Activation | None,
    sums: NeuronSums | None,
    token_mask: Tensor | None,
    mode: Mode,
) -> None:
    """Raise ValueError where these arguments of ``gated_activation`` do not fit one another."""
    if activation not in ACTIVATION_CODES:
        raise ValueError(
            f"activation is {activation!r}; choose silu, gelu_tanh, gelu, relu, relu2 or None"
        )
    if mode not in ("fast", "match_hf"):
        raise ValueError(f"mode is {mode!r}; choose fast or match_hf")
    if not gate.dim():
        raise ValueError(f"gate is {describe(gate)}; it needs a dimension of neurons")
    if up is not None and (
        gate.shape != up.shape or gate.dtype != up.dtype or gate.device != up.device
    ):
        raise ValueError(f"gate is {describe(gate)} and up {describe(up)}; they must be alike")
    if gate.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(
            f"gate is {describe(gate)}; its type must be float32, bfloat16, float16 or float64"
        )
    shape = gate.shape[-1:]
    for total in sums.tensors() if sums else ():
        if (
            total.shape != shape
            or total.dtype != torch.float64
            or total.device != gate.device
            or not total.is_contiguous()
        ):
            raise ValueError(
                f"sums must be fp64 of shape {tuple(shape)}, contiguous and on gate's device; got"
                f" {describe(total)}"
            )
    if token_mask is not None and (
        token_mask.dtype != torch.bool or token_mask.numel() * gate.shape[-1] != gate.numel()
    ):
        raise ValueError(
            f"token_mask is {describe(token_mask)}; it must be bool with one entry a token of"
            f" gate, {describe(gate)}"
        )
    if token_mask is not None and token_mask.device != gate.device:
        raise ValueError(
            f"token_mask is on {token_mask.device}; it must be on {gate.device}, like gate"
        )


def as_rows(tensor: Tensor, name: str) -> Tensor:
    """A view of (..., I) as (T, I), never a copy.

    Raises:
        ValueError: the last dimension is not contiguous, or the rows are not evenly spaced.
    """
    try:
        rows_TI = (
            tensor.view(-1, tensor.shape[-1])
            if tensor.numel()
            else tensor.reshape(0, tensor.shape[-1])
        )
    except RuntimeError:
        rows_TI = None
    if rows_TI is None or (rows_TI.stride(1) != 1 and rows_TI.shape[1] > 1):
        raise ValueError(
            f"{name} is {describe(tensor)} with strides {tensor.stride()}; its rows must be"
            " contiguous and evenly spaced"
        )
    return rows_TI


def describe(tensor: Tensor) -> str:
    """Type, shape and device, for error messages: "bfloat16 (4, 6) on cuda:0"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"

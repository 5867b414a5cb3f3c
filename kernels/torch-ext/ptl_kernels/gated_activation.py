"""act(gate) * up of a gated feed-forward network, with each neuron's sums over the tokens taken in
the same pass.

Shape suffixes: T tokens, I FFN width, S splits of the tokens, N statistics.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cpu, reference

Activation = Literal["silu", "gelu_tanh"]
Mode = Literal["fast", "match_hf"]

CODES = {None: 0, "silu": 1, "gelu_tanh": 2}

# A program owns a block of columns and walks down a split of the rows, so that sums stay in
# registers. Not tuned on a GPU yet.
FORWARD = {"BLOCK_T": 4, "BLOCK_I": 512, "num_warps": 8, "num_stages": 2}
BACKWARD = {"BLOCK_T": 2, "BLOCK_I": 1024, "num_warps": 8, "num_stages": 2}
SUM = {"BLOCK_S": 32, "BLOCK_I": 128, "num_warps": 4, "num_stages": 1}
SPLIT_TOKENS = 256  # fp32 sums stay short, and 8192 tokens x 14336 columns make 896 programs


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
        """Sums of no tokens: the squares only, or every one."""
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
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _gelu_argument(x):
    # 0.5 (1 + tanh(y)) is sigmoid(2 y): 2 sqrt(2 / pi) (x + 0.044715 x^3)
    return 1.5957691216057308 * (x + 0.044715 * x * x * x)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of fp32 values: 0 none, 1 SiLU, 2 GELU with tanh."""
    if ACTIVATION == 0:
        return x
    elif ACTIVATION == 1:
        return x * _sigmoid(x)
    else:
        return x * _sigmoid(_gelu_argument(x))


@triton.jit
def gate_times_up(gate, up, ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, dtype: tl.constexpr):
    """activation(gate) * up of fp32 values, rounded to dtype once, or as often as transformers'
    modules round.
    """
    active = activate(gate, ACTIVATION)
    if MATCH_HF:
        active = active.to(dtype).to(tl.float32)
    return (active * up).to(dtype)


@triton.jit
def _gated_activation_kernel(
    gate_ptr, up_ptr, out_ptr, partials_ptr, mask_ptr,
    num_tokens, width, split_tokens, gate_stride, up_stride, out_stride,
    ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, NUM_STATISTICS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
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
        up = tl.load(up_ptr + wide_rows * up_stride + columns[None, :], mask=inside, other=0.0)
        out = gate_times_up(
            gate.to(tl.float32), up.to(tl.float32), ACTIVATION, MATCH_HF, out_ptr.dtype.element_ty
        )
        tl.store(out_ptr + wide_rows * out_stride + columns[None, :], out, mask=inside)
        if NUM_STATISTICS > 0:
            # The statistic is masked, not only the load: a token that does not count may hold
            # anything, NaN included.
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
            all_absolute = tl.sum(absolute, 0)  # NaN where a value is one, which tl.max would drop
            largest = tl.where(all_absolute != all_absolute, all_absolute, tl.max(maximum, 0))
            tl.store(to + step, tl.sum(total, 0), mask=columns < width)
            tl.store(to + 2 * step, all_absolute, mask=columns < width)
            tl.store(to + 3 * step, largest, mask=columns < width)


@triton.jit
def _add_splits_kernel(partials_ptr, out_0_ptr, out_1_ptr, out_2_ptr, out_3_ptr, num_splits, width,
                       BLOCK_S: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """out_n[i] += sum_s partials[n, s, i] in a fixed order, in fp64; for n = 3 the maximum."""
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
            total = tl.where(
                (total != total) | (total > part), total, part
            )  # a NaN in either comes through, here and below
        else:
            total += part
    if statistic == 0:
        tl.store(
            out_0_ptr + columns,
            tl.load(out_0_ptr + columns, mask=inside) + tl.sum(total, 0),
            mask=inside,
        )
    elif statistic == 1:
        tl.store(
            out_1_ptr + columns,
            tl.load(out_1_ptr + columns, mask=inside) + tl.sum(total, 0),
            mask=inside,
        )
    elif statistic == 2:
        tl.store(
            out_2_ptr + columns,
            tl.load(out_2_ptr + columns, mask=inside) + tl.sum(total, 0),
            mask=inside,
        )
    else:
        before = tl.load(out_3_ptr + columns, mask=inside)
        all_total = tl.sum(
            total, 0
        )  # maxima are not negative, so it is NaN where one of them is, which tl.max would drop
        largest = tl.where(all_total != all_total, all_total, tl.max(total, 0))
        tl.store(
            out_3_ptr + columns,
            tl.where((before != before) | (before > largest), before, largest),
            mask=inside,
        )


@triton.jit
def _gated_activation_backward_kernel(
    grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr,
    num_tokens, width, grad_stride, gate_stride, up_stride, grad_gate_stride, grad_up_stride,
    ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    dtype = gate_ptr.dtype.element_ty
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = (rows < num_tokens)[:, None] & (columns < width)[None, :]
    columns, rows = columns[None, :], rows[:, None]
    grad = tl.load(grad_ptr + rows * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + rows * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + rows * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    value, slope = gate, tl.full((BLOCK_T, BLOCK_I), 1.0, tl.float32)
    if ACTIVATION != 0:
        argument, inner = gate, gate  # inner is gate times the argument's slope
        if ACTIVATION == 2:
            argument, inner = (
                _gelu_argument(gate),
                1.5957691216057308 * (gate + 3 * 0.044715 * gate * gate * gate),
            )
        share = _sigmoid(argument)
        bend = share * (1 - share)
        value, slope = (
            gate * share,
            share + tl.where(bend == 0, 0.0, bend * inner),
        )  # inner may be infinite there
    to_active = grad * up
    if MATCH_HF:
        value, to_active = value.to(dtype).to(tl.float32), to_active.to(dtype).to(tl.float32)
    tl.store(
        grad_gate_ptr + rows * grad_gate_stride + columns,
        (to_active * slope).to(dtype),
        mask=inside,
    )
    tl.store(grad_up_ptr + rows * grad_up_stride + columns, (grad * value).to(dtype), mask=inside)


def gated_activation(
    gate: Tensor,
    up: Tensor,
    activation: Activation | None = "silu",
    *,
    sums: NeuronSums | None = None,
    token_mask: Tensor | None = None,
    mode: Mode = "fast",
    out: Tensor | None = None,
) -> Tensor:
    """Return ``activation(gate) * up``, and add each neuron's sums over the tokens to ``sums``.

    sums.square[i] += sum_t a[t, i]^2 (Eq. 4 of arXiv 2602.04919 is its root), and so on, of the
    values as returned: summed in fp32 over a few hundred tokens, in fp64 beyond, in a fixed order
    (deterministic). Differentiable; keeps gate and up for the backward pass, and nothing else. A
    forward pass that gradient checkpointing repeats adds nothing to the sums.

    Args:
        gate: gate projection, (..., width), fp32/bf16/fp16, last dimension contiguous.
        up: up projection, same shape, dtype and device; both may be halves of one tensor.
        activation: silu, gelu_tanh, or None where gate is activated already.
        sums: where to add, on the same device; None takes no statistics.
        token_mask: True for the tokens that count, (...) bool; None counts all. The others may hold
            anything.
        mode: fast rounds once, at the end; match_hf rounds as transformers' modules do, and on a
            CPU is bit-equal to them.
        out: where to write, for use without gradients; may be ``gate``.

    Raises:
        ValueError: shapes, types, devices or strides do not fit.

    Reads gate and up once and writes once: 3 * num_tokens * width * itemsize bytes. CUDA: Triton;
    CPU: csrc, for fp32 and bf16."""
    check_arguments(gate, up, activation, sums, token_mask, mode)
    gate_TI, up_TI = as_rows(gate, "gate"), as_rows(up, "up")
    mask_T = None if token_mask is None else token_mask.reshape(-1).contiguous()
    if (
        torch._C._current_graph_task_id() != -1
    ):  # inside a backward pass: gradient checkpointing repeats this forward pass
        sums = None
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
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
        up_TI: Tensor,
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
            return torch.zeros_like(gate_TI), torch.zeros_like(up_TI), None, None, None, None
        return *_backward(grad_TI, gate_TI, up_TI, ctx.activation, ctx.mode), None, None, None, None


def _forward(
    gate_TI: Tensor,
    up_TI: Tensor,
    out_TI: Tensor,
    activation: Activation | None,
    sums: NeuronSums | None,
    mask_T: Tensor | None,
    mode: Mode,
) -> None:
    totals = sums.tensors() if sums else ()
    if _use_triton(gate_TI):
        launch_forward(gate_TI, up_TI, out_TI, activation, totals, mask_T, mode)
    elif cpu.takes(gate_TI, up_TI, out_TI):
        if mode == "match_hf":  # the exponential must be torch's own
            gate_TI, activation = reference.activate(gate_TI, activation), None
        cpu.gated_activation(gate_TI, up_TI, out_TI, activation, totals, mask_T)
    else:
        out_TI.copy_(reference.gated_activation(gate_TI, up_TI, activation, mode))
        reference.add_neuron_sums_(totals, out_TI, mask_T)


def _backward(
    grad_TI: Tensor, gate_TI: Tensor, up_TI: Tensor, activation: Activation | None, mode: Mode
) -> tuple[Tensor, Tensor]:
    if _use_triton(gate_TI) or (mode == "fast" and cpu.takes(gate_TI)):
        grad_gate_TI, grad_up_TI = (
            gate_TI.new_empty(gate_TI.shape),
            gate_TI.new_empty(gate_TI.shape),
        )
        if _use_triton(gate_TI):
            launch_backward(grad_TI, gate_TI, up_TI, grad_gate_TI, grad_up_TI, activation, mode)
        else:
            cpu.gated_activation_backward(
                grad_TI, gate_TI, up_TI, grad_gate_TI, grad_up_TI, activation
            )
        return grad_gate_TI, grad_up_TI
    with torch.enable_grad():
        gate_TI, up_TI = gate_TI.detach().requires_grad_(), up_TI.detach().requires_grad_()
        out_TI = reference.gated_activation(gate_TI, up_TI, activation, mode)
    return torch.autograd.grad(out_TI, (gate_TI, up_TI), grad_TI)  # type: ignore[return-value]


def launch_forward(
    gate_TI: Tensor,
    up_TI: Tensor,
    out_TI: Tensor,
    activation: Activation | None,
    totals: tuple[Tensor, ...],
    mask_T: Tensor | None,
    mode: Mode,
) -> None:
    """Run the Triton kernels; the arguments are checked already."""
    num_tokens, width = gate_TI.shape
    num_splits = triton.cdiv(num_tokens, SPLIT_TOKENS)
    partials_NSI = torch.empty(
        len(totals), num_splits, width, dtype=torch.float32, device=gate_TI.device
    )
    with torch.cuda.device_of(gate_TI):
        _gated_activation_kernel[(num_splits, triton.cdiv(width, FORWARD["BLOCK_I"]))](
            gate_TI, up_TI, out_TI, partials_NSI, mask_T,
            num_tokens, width, SPLIT_TOKENS, gate_TI.stride(0), up_TI.stride(0), out_TI.stride(0),
            ACTIVATION=CODES[activation], MATCH_HF=mode == "match_hf", NUM_STATISTICS=len(totals), HAS_MASK=mask_T is not None,
            enable_fp_fusion=True, **FORWARD,
        )  # fmt: skip
    add_splits(partials_NSI, totals)


def add_splits(partials_NSI: Tensor, totals: tuple[Tensor, ...]) -> None:
    """totals[n] += partials[n].sum(0) in a fixed order; the fourth takes the maximum."""
    if not totals:
        return
    _, num_splits, width = partials_NSI.shape
    pointers = (*totals, *[totals[0]] * (4 - len(totals)))
    grid = (triton.cdiv(width, SUM["BLOCK_I"]), len(totals))
    with torch.cuda.device_of(partials_NSI):
        _add_splits_kernel[grid](
            partials_NSI, *pointers, num_splits, width, enable_fp_fusion=True, **SUM
        )


def launch_backward(
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor,
    grad_gate_TI: Tensor,
    grad_up_TI: Tensor,
    activation: Activation | None,
    mode: Mode,
) -> None:
    """Run the Triton kernel; the arguments are checked already."""
    num_tokens, width = gate_TI.shape
    tensors = grad_TI, gate_TI, up_TI, grad_gate_TI, grad_up_TI
    grid = (triton.cdiv(num_tokens, BACKWARD["BLOCK_T"]), triton.cdiv(width, BACKWARD["BLOCK_I"]))
    with torch.cuda.device_of(gate_TI):
        _gated_activation_backward_kernel[grid](
            *tensors, num_tokens, width, *(tensor.stride(0) for tensor in tensors),
            ACTIVATION=CODES[activation], MATCH_HF=mode == "match_hf", enable_fp_fusion=True, **BACKWARD,
        )  # fmt: skip


def _use_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64


def check_arguments(
    gate: Tensor,
    up: Tensor,
    activation: Activation | None,
    sums: NeuronSums | None,
    token_mask: Tensor | None,
    mode: Mode,
) -> None:
    if activation not in CODES:
        raise ValueError(f"activation is {activation!r}; choose silu, gelu_tanh or None")
    if mode not in ("fast", "match_hf"):
        raise ValueError(f"mode is {mode!r}; choose fast or match_hf")
    if (
        gate.shape != up.shape
        or gate.dtype != up.dtype
        or gate.device != up.device
        or not gate.dim()
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
    """(..., I) as (T, I) without a copy."""
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
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"

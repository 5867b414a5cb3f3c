"""A GEMM with two weight matrices (gate_proj and up_proj), activation(gate) * up and each neuron's
sums over the tokens in one kernel, for inference: gate and up are never in memory.

Shape suffixes: T tokens, H hidden size, I FFN width, M token tiles, N statistics.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ._common import (
    ACTIVATION_CODES,
    Activation,
    Mode,
    NeuronSums,
    add_splits,
    as_rows,
    check_arguments,
    describe,
    gate_times_up,
    is_recomputation,
)
from .gated_activation import gated_activation

# Two 128 x 128 fp32 accumulators are 128 registers a thread with 8 warps;
# tests/support/kernel_resources.py shows that both kernels fit. Their speed has not been measured
# on any GPU, so nothing chooses this op by itself.
_TILE = {"BLOCK_T": 128, "BLOCK_I": 128, "GROUP": 8}
POINTERS = {**_TILE, "BLOCK_H": 32, "num_warps": 8, "num_stages": 4}
TMA = {**_TILE, "BLOCK_H": 64, "num_warps": 8, "num_stages": 3}
# Bytes, of a matrix's address and of its rows: what TMA needs, and what a thread loads at once.
ALIGNMENT = 16


@triton.jit
def _tile_of_program(
    num_tokens, width, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, GROUP: tl.constexpr
):
    """(token tile, width tile) of this program, in the grouped order of Triton's matmul tutorial:
    GROUP token tiles take the same width tile one after another, so that its weights stay in L2.
    """
    program = tl.program_id(0)
    group_size = GROUP * tl.cdiv(width, BLOCK_I)
    first = program // group_size * GROUP
    height = tl.minimum(tl.cdiv(num_tokens, BLOCK_T) - first, GROUP)
    place = program % group_size
    return first + place % height, place // height


@triton.jit
def _first_value(bias_ptr, tile_i, width, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr):
    """What an accumulator starts from: the bias, or zero. Added after the products instead, two
    biases need 64 registers beside the accumulators.
    """
    value = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
    if bias_ptr is not None:
        columns = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)
        value += tl.load(bias_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)[
            None, :
        ]
    return value


@triton.jit
def _finish_tile(
    gate, up, tile_t, tile_i, dtype: tl.constexpr,
    out_ptr, partials_ptr, mask_ptr, num_tokens, width,
    ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, NUM_STATISTICS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """The epilogue: activation, store and statistics of one tile, from its two fp32 accumulators.
    The sums over its BLOCK_T tokens become partials[statistic, token tile, column].
    """
    rows = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)
    if MATCH_HF:
        # Two linear layers would return gate and up in their dtype. Adding zero keeps ptxas from
        # converting the accumulators too early on sm_90, which serialises its products (C7514).
        gate, up = (gate + 0.0).to(dtype).to(tl.float32), (up + 0.0).to(dtype).to(tl.float32)
    out = gate_times_up(gate, up, ACTIVATION, MATCH_HF, dtype)
    if out_ptr is not None:
        # 64-bit: tokens * width passes 2^31
        at = out_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(at, out, mask=(rows < num_tokens)[:, None] & (columns < width)[None, :])
    if NUM_STATISTICS > 0:
        # A token that does not count may hold anything, NaN included: select, since multiplying by
        # zero would keep a NaN.
        counts = rows < num_tokens
        if mask_ptr is not None:
            counts = counts & (tl.load(mask_ptr + rows, mask=counts, other=0) != 0)
        value = tl.where(counts[:, None], out.to(tl.float32), 0.0)
        to = partials_ptr + tile_t * width + columns
        step = tl.cdiv(num_tokens, BLOCK_T) * width
        tl.store(to, tl.sum(value * value, 0), mask=columns < width)
        if NUM_STATISTICS > 1:
            magnitude = tl.abs(value)
            absolute = tl.sum(magnitude, 0)
            tl.store(to + step, tl.sum(value, 0), mask=columns < width)
            tl.store(to + 2 * step, absolute, mask=columns < width)
            # tl.max drops a NaN; the sum of |a| keeps it.
            largest = tl.where(absolute != absolute, absolute, tl.max(magnitude, 0))
            tl.store(to + 3 * step, largest, mask=columns < width)


@triton.jit
def _dual_gemm_kernel(
    hidden_ptr, gate_weight_ptr, up_weight_ptr, gate_bias_ptr, up_bias_ptr,
    out_ptr, partials_ptr, mask_ptr,
    num_tokens, width, hidden_size, hidden_stride, gate_stride, up_stride,
    ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, NUM_STATISTICS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_H: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A program computes a tile of BLOCK_T tokens x BLOCK_I neurons, and loads through pointers."""
    # choose_launcher lets rows of 16-byte multiples in only: 8 elements. This arithmetic tells the
    # compiler, which knows no divisor of an argument but 16; otherwise it loads 2 bytes at a time.
    hidden_size, hidden_stride = hidden_size // 8 * 8, hidden_stride // 8 * 8
    gate_stride, up_stride = gate_stride // 8 * 8, up_stride // 8 * 8
    # Without this the loop below may run zero times, and ptxas then serialises the asynchronous
    # products of sm_90 (C7514).
    tl.assume(hidden_size > 0)
    tile_t, tile_i = _tile_of_program(num_tokens, width, BLOCK_T, BLOCK_I, GROUP)
    # One 64-bit address a matrix (tokens * hidden_size passes 2^31) and 32-bit offsets in the tile:
    # 64-bit addresses of all rows spill on sm_80. Rows beyond a matrix's end read its last row
    # again instead of being masked; _finish_tile leaves them out.
    hidden_ptr += tile_t.to(tl.int64) * BLOCK_T * hidden_stride
    gate_weight_ptr += tile_i.to(tl.int64) * BLOCK_I * gate_stride
    up_weight_ptr += tile_i.to(tl.int64) * BLOCK_I * up_stride
    rows = tl.minimum(tl.arange(0, BLOCK_T), num_tokens - 1 - tile_t * BLOCK_T)[:, None]
    columns = tl.minimum(tl.arange(0, BLOCK_I), width - 1 - tile_i * BLOCK_I)[:, None]
    depth = tl.arange(0, BLOCK_H)[None, :]
    hidden_at = rows * hidden_stride + depth
    gate_at, up_at = columns * gate_stride + depth, columns * up_stride + depth
    gate = _first_value(gate_bias_ptr, tile_i, width, BLOCK_T, BLOCK_I)
    up = _first_value(up_bias_ptr, tile_i, width, BLOCK_T, BLOCK_I)
    for start in range(0, hidden_size, BLOCK_H):
        inside = depth < hidden_size - start
        hidden = tl.load(hidden_ptr + (start + hidden_at), mask=inside, other=0.0)
        gate_weight = tl.load(gate_weight_ptr + (start + gate_at), mask=inside, other=0.0)
        up_weight = tl.load(up_weight_ptr + (start + up_at), mask=inside, other=0.0)
        gate = tl.dot(hidden, gate_weight.T, gate, input_precision="ieee")
        up = tl.dot(hidden, up_weight.T, up, input_precision="ieee")
    _finish_tile(
        gate, up, tile_t, tile_i, hidden_ptr.dtype.element_ty,
        out_ptr, partials_ptr, mask_ptr, num_tokens, width,
        ACTIVATION, MATCH_HF, NUM_STATISTICS, BLOCK_T, BLOCK_I,
    )  # fmt: skip


@triton.jit
def _dual_gemm_tma_kernel(
    hidden_descriptor, gate_weight_descriptor, up_weight_descriptor, gate_bias_ptr, up_bias_ptr,
    out_ptr, partials_ptr, mask_ptr, num_tokens, width, hidden_size,
    ACTIVATION: tl.constexpr, MATCH_HF: tl.constexpr, NUM_STATISTICS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_H: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The same tile through tensor descriptors, which the TMA unit of sm_90 loads by itself."""
    tl.assume(hidden_size > 0)  # see _dual_gemm_kernel
    tile_t, tile_i = _tile_of_program(num_tokens, width, BLOCK_T, BLOCK_I, GROUP)
    row, column = tile_t * BLOCK_T, tile_i * BLOCK_I
    gate = _first_value(gate_bias_ptr, tile_i, width, BLOCK_T, BLOCK_I)
    up = _first_value(up_bias_ptr, tile_i, width, BLOCK_T, BLOCK_I)
    for start in range(0, hidden_size, BLOCK_H):  # what lies beyond a matrix reads as zero
        hidden = hidden_descriptor.load([row, start])
        gate_weight = gate_weight_descriptor.load([column, start])
        gate = tl.dot(hidden, gate_weight.T, gate, input_precision="ieee")
        up_weight = up_weight_descriptor.load([column, start])
        up = tl.dot(hidden, up_weight.T, up, input_precision="ieee")
    _finish_tile(
        gate, up, tile_t, tile_i, hidden_descriptor.dtype,
        out_ptr, partials_ptr, mask_ptr, num_tokens, width,
        ACTIVATION, MATCH_HF, NUM_STATISTICS, BLOCK_T, BLOCK_I,
    )  # fmt: skip


def dual_gemm(
    hidden: Tensor,
    gate_weight_IH: Tensor,
    up_weight_IH: Tensor,
    gate_bias_I: Tensor | None = None,
    up_bias_I: Tensor | None = None,
    activation: Activation | None = "silu",
    *,
    sums: NeuronSums | None = None,
    token_mask: Tensor | None = None,
    mode: Mode = "fast",
    store: bool = True,
) -> Tensor | None:
    """Return a = activation(gate) * up, where gate = hidden @ gate_weight.T + gate_bias and up =
    hidden @ up_weight.T + up_bias, and add each neuron's sums over the tokens to ``sums``.

    For inference: no gradient. The sums are those of ``gated_activation``, of the values as
    returned: added in fp32 over a tile of 128 tokens and in fp64 beyond, in a fixed order, so that
    the same input gives the same bits. A forward pass that gradient checkpointing repeats adds
    nothing.

    Args:
        hidden: the feed-forward network's input, (..., hidden_size), fp32/bf16/fp16, rows
            contiguous and evenly spaced.
        gate_weight_IH: gate_proj's weight, (width, hidden_size), same dtype and device, last
            dimension contiguous.
        up_weight_IH: up_proj's weight, likewise; both may be halves of one tensor.
        gate_bias_I: (width,), same dtype and device, contiguous; or None.
        up_bias_I: likewise.
        activation: silu, gelu_tanh or None.
        sums: where to add, on the same device; None takes no statistics.
        token_mask: True for the tokens that count, (...) bool; None counts all. The others may hold
            anything.
        mode: fast rounds once, at the end; match_hf also rounds gate and up, and as transformers'
            modules do after them.
        store: False takes the statistics only, and allocates no activation.

    Returns:
        (..., width), or None with ``store=False``.

    Raises:
        ValueError: shapes, types, devices or strides do not fit, a gradient would be needed, or
            nothing is asked for.

    4 * num_tokens * width * hidden_size FLOP. Besides the GEMMs' inputs it moves num_tokens * width
    * itemsize bytes (none with ``store=False``), where two linear layers, the activation and the
    product in eager mode move 7 times as many. CUDA with fp16 or bf16: Triton. Elsewhere, and where
    rows are not multiples of 16 bytes: two linear layers, which round gate and up in both modes,
    and ``gated_activation`` in place.
    """
    weights, biases = (gate_weight_IH, up_weight_IH), (gate_bias_I, up_bias_I)
    _check_inputs(hidden, weights, biases, sums, store)
    shape = *hidden.shape[:-1], len(gate_weight_IH)
    # Shape, type and device of the result without its memory.
    stand_in = hidden.new_empty(()).expand(shape)
    check_arguments(stand_in, stand_in, activation, sums, token_mask, mode)
    hidden_TH = as_rows(hidden, "hidden")
    if is_recomputation():
        sums = None
        if not store:
            return None
    launcher = choose_launcher(hidden_TH, *weights)
    if launcher is None:
        gate, up = (
            torch.nn.functional.linear(hidden, weight, bias)
            for weight, bias in zip(weights, biases, strict=True)
        )
        gated_activation(
            gate, up, activation, sums=sums, token_mask=token_mask, mode=mode, out=gate
        )
        return gate if store else None
    mask_T = None if token_mask is None else token_mask.reshape(-1).contiguous()
    out = torch.empty(shape, dtype=hidden.dtype, device=hidden.device) if store else None
    totals = sums.tensors() if sums else ()
    launcher(hidden_TH, *weights, *biases, out, activation, totals, mask_T, mode)
    return out


def choose_launcher(hidden_TH: Tensor, *weights: Tensor) -> Callable[..., None] | None:
    """The kernel that can take these matrices: ``launch_tma`` on sm_90, ``launch`` on other GPUs,
    or None where two linear layers must do.
    """
    matrices = hidden_TH, *weights
    if (
        not hidden_TH.is_cuda
        or hidden_TH.dtype not in (torch.float16, torch.bfloat16)
        or not all(each.numel() for each in matrices)
    ):
        return None
    rows_fit = all(
        length * 2 % ALIGNMENT == 0
        for each in matrices
        for length in (each.shape[1], each.stride(0))
    )
    if not rows_fit or any(each.data_ptr() % ALIGNMENT for each in matrices):
        return None  # TMA refuses, and loads of 2 bytes spill registers on sm_80
    return launch_tma if torch.cuda.get_device_capability(hidden_TH.device)[0] == 9 else launch


def launch(
    hidden_TH: Tensor,
    gate_weight_IH: Tensor,
    up_weight_IH: Tensor,
    gate_bias_I: Tensor | None,
    up_bias_I: Tensor | None,
    out: Tensor | None,
    activation: Activation | None,
    totals: tuple[Tensor, ...],
    mask_T: Tensor | None,
    mode: Mode,
    config: dict[str, int] = POINTERS,
) -> None:
    """Run the kernel that loads through pointers; the arguments are checked already."""
    num_tokens, width = len(hidden_TH), len(gate_weight_IH)
    grid, partials_NMI = _grid_and_partials(hidden_TH, width, len(totals), config)
    with torch.cuda.device_of(hidden_TH):
        _dual_gemm_kernel[grid](
            hidden_TH, gate_weight_IH, up_weight_IH, gate_bias_I, up_bias_I,
            out, partials_NMI, mask_T, num_tokens, width, hidden_TH.shape[1],
            hidden_TH.stride(0), gate_weight_IH.stride(0), up_weight_IH.stride(0),
            ACTIVATION=ACTIVATION_CODES[activation], MATCH_HF=mode == "match_hf",
            NUM_STATISTICS=len(totals), enable_fp_fusion=True, **config,
        )  # fmt: skip
    add_splits(partials_NMI, totals)


def launch_tma(
    hidden_TH: Tensor,
    gate_weight_IH: Tensor,
    up_weight_IH: Tensor,
    gate_bias_I: Tensor | None,
    up_bias_I: Tensor | None,
    out: Tensor | None,
    activation: Activation | None,
    totals: tuple[Tensor, ...],
    mask_T: Tensor | None,
    mode: Mode,
    config: dict[str, int] = TMA,
) -> None:
    """Run the kernel that loads through descriptors; the arguments are checked already."""
    num_tokens, width = len(hidden_TH), len(gate_weight_IH)
    grid, partials_NMI = _grid_and_partials(hidden_TH, width, len(totals), config)
    hidden = TensorDescriptor.from_tensor(hidden_TH, [config["BLOCK_T"], config["BLOCK_H"]])
    gate_weight, up_weight = (
        TensorDescriptor.from_tensor(weight_IH, [config["BLOCK_I"], config["BLOCK_H"]])
        for weight_IH in (gate_weight_IH, up_weight_IH)
    )
    with torch.cuda.device_of(hidden_TH):
        _dual_gemm_tma_kernel[grid](
            hidden, gate_weight, up_weight, gate_bias_I, up_bias_I,
            out, partials_NMI, mask_T, num_tokens, width, hidden_TH.shape[1],
            ACTIVATION=ACTIVATION_CODES[activation], MATCH_HF=mode == "match_hf",
            NUM_STATISTICS=len(totals), enable_fp_fusion=True, **config,
        )  # fmt: skip
    add_splits(partials_NMI, totals)


def _grid_and_partials(
    hidden_TH: Tensor, width: int, num_statistics: int, config: dict[str, int]
) -> tuple[tuple[int], Tensor]:
    num_tiles = triton.cdiv(len(hidden_TH), config["BLOCK_T"])
    partials_NMI = torch.empty(
        num_statistics, num_tiles, width, dtype=torch.float32, device=hidden_TH.device
    )
    return (num_tiles * triton.cdiv(width, config["BLOCK_I"]),), partials_NMI


def _check_inputs(
    hidden: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    sums: NeuronSums | None,
    store: bool,
) -> None:
    """Raise ValueError where what ``gated_activation`` does not have does not fit."""
    if not store and sums is None:
        raise ValueError(
            "store=False returns nothing, and without sums nothing is computed; give sums or leave"
            " store True"
        )
    for name, weight, bias in zip(("gate", "up"), weights, biases, strict=True):
        like = hidden.dtype, hidden.device
        if (
            weight.dim() != 2
            or weight.shape != weights[0].shape
            or (weight.dtype, weight.device) != like
        ):
            raise ValueError(
                f"{name}_weight is {describe(weight)}; both weights must be (width, hidden_size),"
                f" like {describe(hidden)}"
            )
        if weight.shape[1] > 1 and weight.stride(1) != 1:
            raise ValueError(
                f"{name}_weight has strides {weight.stride()}; its last dimension must be"
                " contiguous"
            )
        if bias is not None and (
            bias.shape != weight.shape[:1]
            or (bias.dtype, bias.device) != like
            or not bias.is_contiguous()
        ):
            raise ValueError(
                f"{name}_bias is {describe(bias)}; it must be contiguous, one entry a row of"
                f" {describe(weight)}"
            )
    if hidden.dim() < 1 or hidden.shape[-1] != weights[0].shape[1]:
        raise ValueError(
            f"hidden is {describe(hidden)}; its last dimension must be the weights',"
            f" {describe(weights[0])}"
        )
    tensors = hidden, *weights, *(bias for bias in biases if bias is not None)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            "dual_gemm has no gradient; call it under torch.no_grad(), or use two linear layers"
            " and gated_activation"
        )

"""Launches of every shipped kernel, in all the variants that Triton compiles.

The package's own launchers are called on tensors without memory (device "meta").
"""

import itertools
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ptl_kernels import Activation
from ptl_kernels.compaction import launch_gather, launch_moves
from ptl_kernels.dual_gemm import launch as launch_dual_gemm
from ptl_kernels.dual_gemm import launch_tma as launch_dual_gemm_tma
from ptl_kernels.gated_activation import launch_backward, launch_forward
from ptl_kernels.residual_change import launch as launch_residual_change

TOKENS, WIDTH, HIDDEN = 8192, 14336, 4096  # Llama3-8B
HALVES = (torch.bfloat16, torch.float16)
FLOATS = (*HALVES, torch.float32)


def covering(**choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Few combinations of the choices, such that every two values of two choices come together in
    at least one (pairwise testing, greedily). Combinations that no launch can have are left out.
    """
    every = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    every = [combination for combination in every if _makes_sense(**combination)]
    pairs = [set(itertools.combinations(combination.items(), 2)) for combination in every]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(range(len(every)), key=lambda index: len(pairs[index] & missing))
        chosen.append(every[best])
        missing -= pairs[best]
    return chosen


def _makes_sense(store: bool = True, statistics: int = 1, mask: bool = False, **_: Any) -> bool:
    """Something is computed, and a mask has statistics to mask."""
    return (store or statistics > 0) and (statistics > 0 or not mask)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _totals(count: int, width: int) -> tuple[Tensor, ...]:
    return tuple(_empty(width, dtype=torch.float64) for _ in range(count))


def _mask(wanted: bool) -> Tensor | None:
    return _empty(TOKENS, dtype=torch.bool) if wanted else None


def _forward(
    dtype: torch.dtype,
    activation: Any,
    mode: Any,
    statistics: int,
    mask: bool,
    width: int,
    inputs: str,
) -> None:
    gate_up = _empty(TOKENS, 2 * width, dtype=dtype)
    gate, up = (
        gate_up.chunk(2, 1)
        if inputs == "fused"
        else (_empty(TOKENS, width, dtype=dtype) for _ in range(2))
    )
    up = None if inputs == "ungated" else up
    out = _empty(TOKENS, width, dtype=dtype)
    launch_forward(gate, up, out, activation, _totals(statistics, width), _mask(mask), mode)


def _backward(dtype: torch.dtype, activation: Any, mode: Any, width: int, inputs: str) -> None:
    grad, gate, up, grad_gate, grad_up = (_empty(TOKENS, width, dtype=dtype) for _ in range(5))
    if inputs == "ungated":
        launch_backward(grad, gate, None, grad_gate, None, activation, mode)
    else:
        launch_backward(grad, gate, up, grad_gate, grad_up, activation, mode)


def _change(dtype: torch.dtype, mask: bool, hidden: int) -> None:
    before, after = (_empty(TOKENS, hidden, dtype=dtype) for _ in range(2))
    launch_residual_change(before, after, _empty(3, dtype=torch.float64), _mask(mask))


def _move_rows(dtype: torch.dtype, hidden: int) -> None:
    moves = _empty(32, 100, dtype=torch.int64)
    launch_moves([_empty(WIDTH, hidden, dtype=dtype) for _ in range(32)], moves, moves)


def _gather_columns(dtype: torch.dtype, width: int, kept: int) -> None:
    launch_gather(_empty(HIDDEN, width, dtype=dtype), _empty(kept, dtype=torch.int64))


def _dual(
    launcher: Callable[..., None],
    dtype: torch.dtype,
    activation: Any,
    mode: Any,
    statistics: int,
    mask: bool,
    store: bool,
    bias: bool,
    width: int,
    hidden: int,
) -> None:
    matrices = [_empty(rows, hidden, dtype=dtype) for rows in (TOKENS, width, width)]
    biases = [_empty(width, dtype=dtype) if bias else None for _ in range(2)]
    out = _empty(TOKENS, width, dtype=dtype) if store else None
    launcher(*matrices, *biases, out, activation, _totals(statistics, width), _mask(mask), mode)


# For each launcher what it is called with. Sizes come with and without the divisor 16: Triton
# compiles a kernel of its own for arguments that have it.
ACTIVATION = {"activation": ("silu", "gelu_tanh", None), "mode": ("fast", "match_hf")}
EVERY_ACTIVATION = {**ACTIVATION, "activation": (*typing.get_args(Activation), None)}
STATISTICS = {"statistics": (1, 0, 4), "mask": (False, True)}
WIDTHS = {"width": (WIDTH, WIDTH + 1)}
DUAL = {
    "dtype": HALVES,
    **ACTIVATION,
    **STATISTICS,
    "store": (True, False),
    "bias": (False, True),
    **WIDTHS,
    "hidden": (HIDDEN, HIDDEN + 8),
}
CALLS: list[tuple[Callable[..., None], dict[str, tuple[Any, ...]]]] = [
    (
        _forward,
        {
            "dtype": FLOATS,
            **EVERY_ACTIVATION,
            **STATISTICS,
            **WIDTHS,
            "inputs": ("two", "fused", "ungated"),
        },
    ),
    (
        _backward,
        {"dtype": FLOATS, **EVERY_ACTIVATION, **WIDTHS, "inputs": ("two", "ungated")},
    ),
    (_change, {"dtype": FLOATS, "mask": (False, True), "hidden": (HIDDEN, HIDDEN + 1)}),
    (
        _move_rows,
        {
            "dtype": (torch.int8, torch.bfloat16, torch.float32, torch.float64),
            "hidden": (HIDDEN, HIDDEN + 1),
        },
    ),
    (
        _gather_columns,
        {
            "dtype": (torch.int8, torch.bfloat16, torch.float32, torch.float64),
            **WIDTHS,
            "kept": (12896, 12897),
        },
    ),
    (_dual, {"launcher": (launch_dual_gemm,), **DUAL}),
    (_dual, {"launcher": (launch_dual_gemm_tma,), **DUAL}),
]

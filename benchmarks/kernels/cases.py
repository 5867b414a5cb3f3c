"""Which ops bench_kernels times, on which shapes and dtypes."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.kernels.case import Case, Setting, Shape
from benchmarks.kernels.compaction_cases import (
    compact_ffn_case,
    compact_planned_case,
    compact_rows_case,
)
from benchmarks.kernels.ffn_cases import (
    backward_case,
    dual_gemm_case,
    ffn_case,
    gated_activation_case,
    match_hf_case,
    residual_change_case,
    square_case,
)

QUICK = [Shape("quick", 96, 64, 128)]
SHAPES = {
    "cpu": [
        Shape("SmolLM2-135M", 1024, 576, 1536),
        Shape("SmolLM2-135M", 2048, 576, 1536),
        Shape("1024x4096", 1024, 1024, 4096),
        Shape("1024x4096", 2048, 1024, 4096),
    ],
    "cuda": [
        Shape("Llama3-8B", 8192, 4096, 14336),
        Shape("Gemma2-9B", 8192, 3584, 14336, "gelu_tanh"),
        Shape("Qwen2.5-7B", 8192, 3584, 18944),
        Shape("SmolLM2-135M", 8192, 576, 1536),
    ],
}
# More shapes for ops that only move weights: those of a large model are within a CPU's reach.
WEIGHT_SHAPES = {"cpu": [Shape("Llama3-8B", 0, 4096, 14336)], "cuda": []}
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.bfloat16, torch.float16]}

OPS: dict[str, tuple[Callable[[str, Setting], Case], bool]] = {
    "gated_activation": (gated_activation_case, True),
    "gated_activation_square": (square_case, True),
    "gated_activation_match_hf": (match_hf_case, True),
    "gated_activation_backward": (backward_case, True),
    "ffn": (ffn_case, True),
    "dual_gemm": (dual_gemm_case, True),
    "residual_change": (residual_change_case, True),
    "compact_ffn": (compact_ffn_case, False),
    "compact_ffn_planned": (compact_planned_case, False),
    "compact_rows": (compact_rows_case, False),
}
"""What makes the case of an op, and whether the op's inputs have tokens."""


def cases(device: str, quick: bool = False, op: str | None = None) -> Iterator[Case]:
    """Every case of a kind of device (cpu or cuda), or those of one op.

    Inputs are not made yet: tables list the cases without running them.
    """
    for name in [op] if op else OPS:
        make_case, has_tokens = OPS[name]
        shapes = QUICK if quick else SHAPES[device]
        if not has_tokens:
            # shapes that differ in their tokens alone become one
            tokenless = [replace(shape, num_tokens=0) for shape in shapes]
            more = [] if quick else WEIGHT_SHAPES[device]
            shapes = list(dict.fromkeys([*tokenless, *more]))
        for shape in shapes:
            for dtype in DTYPES[device]:
                yield make_case(name, Setting(shape, dtype, device))

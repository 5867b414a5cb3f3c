"""Operations on feed-forward neurons and decoder layers, usable without ptl_fast.

Imports only the standard library, torch and triton. Each operation has Triton kernels for CUDA, C++
kernels for CPUs (``cpu``), and a plain PyTorch twin in ``reference``.
"""

from ._common import Activation, Mode, NeuronSums
from .compaction import HoleFilling, compact_ffn_, hole_filling
from .dual_gemm import dual_gemm
from .ffn import Ffn, FfnStatistics, collect_statistics, find_gated_ffns, fused_ffns, matrix
from .gated_activation import gated_activation
from .residual_change import residual_change

__all__ = [
    "Activation",
    "Ffn",
    "FfnStatistics",
    "HoleFilling",
    "Mode",
    "NeuronSums",
    "collect_statistics",
    "compact_ffn_",
    "dual_gemm",
    "find_gated_ffns",
    "fused_ffns",
    "gated_activation",
    "hole_filling",
    "matrix",
    "residual_change",
]

"""What a case of bench_kernels is: one op, on inputs of one shape and dtype, on one device.

Shape suffixes: T tokens, I FFN width, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels.peers import Contender, Tensors
from ptl_kernels.gated_activation import Activation

# Largest |result - twin| / (|twin| + rms(twin)). One rounding is off by up to 2^-24, 2^-11 or 2^-8
# of a value. Peers round up to three times, and a GEMM's output adds up rounded activations: its
# largest error is several roundings.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
GEMM_TOLERANCE = {torch.float32: 1e-4, torch.float16: 6e-3, torch.bfloat16: 5e-2}
SUM_TOLERANCE = 2e-5  # sums of exact inputs, in fp32 or wider
EXACT = 0.0


@dataclass(frozen=True)
class Shape:
    """Sizes of one FFN and of the batch that runs through it."""

    model: str
    num_tokens: int
    """0 where an op has none."""
    hidden_size: int
    width: int
    activation: Activation = "silu"

    def __str__(self) -> str:
        tokens = f"T{self.num_tokens}" if self.num_tokens else ""
        return " ".join(
            filter(None, [self.model, tokens, f"H{self.hidden_size}", f"I{self.width}"])
        )


@dataclass(frozen=True)
class Setting:
    """Where and on what an op runs."""

    shape: Shape
    dtype: torch.dtype
    device: str
    """cpu or cuda."""

    def normal(self, *sizes: int, scale: float = 1.0) -> Tensor:
        """Random values with this standard deviation."""
        return torch.randn(sizes, dtype=self.dtype, device=self.device).mul_(scale)

    def activations(self, *names: str) -> Tensors:
        """Random (num_tokens, width) tensors."""
        return {name: self.normal(self.shape.num_tokens, self.shape.width) for name in names}

    def weights(self) -> Tensors:
        """The three projections of an FFN, scaled so that outputs have about the inputs' size."""
        hidden, width = self.shape.hidden_size, self.shape.width
        sizes = {
            "gate_weight": (width, hidden),
            "up_weight": (width, hidden),
            "down_weight": (hidden, width),
        }
        return {name: self.normal(*size, scale=size[1] ** -0.5) for name, size in sizes.items()}

    @property
    def activation_bytes(self) -> int:
        """Size of one (num_tokens, width) tensor."""
        return self.shape.num_tokens * self.shape.width * self.dtype.itemsize


@dataclass(frozen=True)
class Case:
    """One op in one setting."""

    op: str
    setting: Setting
    make_inputs: Callable[[], Tensors]
    """Fresh random inputs."""
    twin: Callable[[Tensors], Tensors]
    """The right results by name, in fp64, of the inputs in fp64."""
    ours: Contender
    peers: dict[str, Contender]
    tolerance: float
    """Largest error at which a result counts as right."""
    num_bytes: int | None = None
    """Least memory traffic of the op; None where a GEMM dominates."""

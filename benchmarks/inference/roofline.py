"""How long a model's operations must take on a device: their FLOPs and bytes over rates measured on
that device.

- A matrix product takes its FLOPs at the rate of the dense model's product in the same place: as
  many rows, the same projection, and weights that change from call to call as they do from layer to
  layer. So they come from where a model's weights come from, the device's memory or, for a small
  model, its caches. A narrower FFN is judged by the dense FFN's rate: a width that suits the device
  badly then shows as a prediction that was missed.
- Attention takes its FLOPs at the rate of attention of its shape.
- Any other operation takes its bytes at the rate of an elementwise operation whose output is as
  large and allocated in the same way.

The host's time between operations is not in here: prediction.py measures it.
"""

import functools
import itertools
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.harness.stopwatch import Stopwatch
from benchmarks.inference.operations import Operation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Call = Callable[[], object]

NUM_TIMINGS = 9
SECONDS_PER_TIMING = 0.02  # calls that are shorter than this are timed many at once


class Rates:
    """FLOP/s and bytes/s that the device reaches at the shapes of one model. Each rate is measured
    when it is first asked for.
    """

    def __init__(self, dense: "PreTrainedModel", stopwatch: Stopwatch) -> None:
        self.dtype, self.stopwatch = dense.dtype, stopwatch
        self.num_layers, self.width = dense.config.num_hidden_layers, dense.config.intermediate_size
        projections = [module for module in dense.modules() if isinstance(module, nn.Linear)]
        self.products = {(each.in_features, each.out_features) for each in projections}
        self.weight_bytes = sum(each.weight.nbytes for each in projections)
        self.measured: dict[str, float] = {}
        """FLOP/s and bytes/s by a name that says of what."""

    def seconds(self, operations: list[Operation], width: int) -> float:
        """Time of these operations of a model with this FFN width."""
        return sum(self._seconds(operation, width) for operation in operations)

    def _seconds(self, operation: Operation, width: int) -> float:
        if operation.kind == "gemm":
            rows, inputs, outputs = operation.shape
            return operation.flops / self.gemm(rows, *self._dense_sizes(inputs, outputs, width))
        if operation.kind == "attention":
            return operation.flops / self.attention(*operation.shape)
        return operation.num_bytes / self.elementwise(*operation.shape)

    def _dense_sizes(self, inputs: int, outputs: int, width: int) -> tuple[int, int]:
        """The sizes that a product of a model with another FFN width has in the dense model."""
        if (inputs, outputs) in self.products:
            return inputs, outputs
        to_dense = {width: self.width, 2 * width: 2 * self.width}  # twice: gate and up fused
        return to_dense.get(inputs, inputs), to_dense.get(outputs, outputs)

    def gemm(self, rows: int, inputs: int, outputs: int) -> float:
        """FLOP/s of a projection of ``rows`` tokens, over calls that each have another weight."""

        def make_calls() -> list[Call]:
            tokens = self._normal(rows, inputs)
            weight_bytes = inputs * outputs * self.dtype.itemsize
            # as many bytes of weights as the model has, or as push everything out of the caches
            total_bytes = min(self.weight_bytes, self.stopwatch.flush.nbytes)
            return [
                functools.partial(linear, tokens, self._normal(outputs, inputs))
                for _ in range(max(1, total_bytes // weight_bytes))
            ]

        name = f"gemm {rows} x {inputs} x {outputs}, FLOP/s"
        return self._rate(name, 2 * rows * inputs * outputs, make_calls)

    def attention(
        self, batch: int, heads: int, length: int, head_dim: int, key_length: int, key_heads: int
    ) -> float:
        """FLOP/s of causal attention where there are several queries, counting the full square; of
        one query over its context.
        """

        def make_calls() -> list[Call]:
            query = self._normal(batch, heads, length, head_dim)
            # A prefill has just computed its keys and values. A decode step reads them from the KV
            # cache, of which every layer has its own.
            num_caches = 1 if length > 1 else self.num_layers
            caches = [
                [self._normal(batch, key_heads, key_length, head_dim) for _ in range(2)]
                for _ in range(num_caches)
            ]
            attend = functools.partial(
                scaled_dot_product_attention,
                query,
                is_causal=length > 1,
                enable_gqa=heads != key_heads,
            )
            return [functools.partial(attend, key=key, value=value) for key, value in caches]

        name = (
            f"attention {batch} x {heads} heads of {head_dim}, {length} of {key_length},"
            f" {key_heads} key heads, FLOP/s"
        )
        return self._rate(name, 4 * batch * heads * length * head_dim * key_length, make_calls)

    def elementwise(self, num_bytes: int) -> float:
        """Bytes/s, read and written, of an operation that writes ``num_bytes`` and reads as many
        that have just been written.
        """

        def make_calls() -> list[Call]:
            source = self._normal(num_bytes // self.dtype.itemsize)
            return [source.abs]

        return self._rate(f"elementwise of {num_bytes} bytes, byte/s", 2 * num_bytes, make_calls)

    def _rate(self, name: str, amount: int, make_calls: Callable[[], list[Call]]) -> float:
        """Amount per second, at ``amount`` a call, of calls that follow one another."""
        if name not in self.measured:
            calls = make_calls()
            calls[0]()
            seconds = self.stopwatch.time_ms(calls[0], warm=True) / 1e3
            num_calls = max(1, int(SECONDS_PER_TIMING / seconds))
            sequence = list(itertools.islice(itertools.cycle(calls), num_calls))

            def run_sequence() -> None:
                for call in sequence:
                    call()

            times_ms = [self.stopwatch.time_ms(run_sequence, warm=True) for _ in range(NUM_TIMINGS)]
            self.measured[name] = amount * num_calls / (statistics.median(times_ms) / 1e3)
        return self.measured[name]

    def _normal(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=self.dtype, device=self.stopwatch.device)

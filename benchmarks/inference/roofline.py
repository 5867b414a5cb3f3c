"""How long a model's operations must take on a device: their FLOPs and bytes over rates measured on
that device.

Every operation that PyTorch dispatches in a pass is counted, for any family and attention.

- A matrix product takes its FLOPs at the rate of the dense model's product of the same place: as
  many rows, same projection, and weights that change from call to call as they do from layer to
  layer, so that they come from where the model's come from, the device's memory or, for a small
  model, its caches. A narrower FFN is judged by the dense FFN's rate: a width that suits the device
  badly then shows as a prediction that was missed.
- Attention takes its FLOPs at the rate of attention of its shape.
- Any other operation takes its bytes at the rate of an elementwise operation whose output,
  allocated as theirs, is as large.

The host's time between operations is speedup.py's to measure.
"""

import functools
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from benchmarks.harness.stopwatch import Stopwatch
from ptl_fast.model.flops import model_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Call = Callable[[], object]

# position of the left operand among an operation's arguments
MATRIX_PRODUCTS = {
    torch.ops.aten.mm: 0,
    torch.ops.aten.bmm: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten.baddbmm: 1,
}
NO_TRAFFIC = {
    torch.ops.aten._unsafe_view,
    torch.ops.aten.lift_fresh,
    torch.ops.aten.empty,
    torch.ops.aten.detach,
}
SMALLEST_OUTPUT = 1 << 16  # bytes; below, the time is that of the call
NUM_TIMINGS = 9
LAP_SECONDS = 0.02  # how long the calls that are timed together may take


@dataclass(frozen=True)
class Operation:
    """What one operation costs."""

    kind: Literal["gemm", "attention", "other"]
    flops: int
    num_bytes: int
    """Inputs and outputs, each once."""
    shape: tuple[int, ...] = ()
    """gemm: (rows, inputs, outputs). attention: (batch, heads, query_length, head_dim, key_length,
    key_heads). other: (output bytes,), up to a power of two."""


class Counter(TorchDispatchMode):
    """Lists the operations that run inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            decomposed = func.decompose(
                *args, **kwargs
            )  # linear, matmul and the like, where inference mode left them whole
        if decomposed is not NotImplemented:
            return decomposed
        result = func(*args, **kwargs)
        if not func.is_view and func.overloadpacket not in NO_TRAFFIC:
            self.operations.append(cost(func.overloadpacket, args, kwargs, result))
        return result


def cost(function: Any, args: Any, kwargs: Any, result: Any) -> Operation:
    """Count one call."""
    outputs = tree_flatten(result)[0]
    num_bytes = sum(map(_num_bytes, [*tree_flatten((args, kwargs))[0], *outputs]))
    if function in MATRIX_PRODUCTS:
        left, right = args[MATRIX_PRODUCTS[function] :][:2]
        return Operation(
            "gemm",
            2 * left.numel() * right.shape[-1],
            num_bytes,
            (left.shape[-2], *right.shape[-2:]),
        )
    if "scaled_dot_product" in str(function):
        (batch, heads, length, head_dim), (key_heads, key_length) = (
            args[0].shape,
            args[1].shape[1:3],
        )
        flops = 4 * batch * heads * length * key_length * head_dim
        return Operation(
            "attention", flops, num_bytes, (batch, heads, length, head_dim, key_length, key_heads)
        )
    if function is torch.ops.aten.embedding:  # reads the rows that it writes, not the whole table
        num_bytes = 2 * _num_bytes(outputs[0])
    largest = max(
        [SMALLEST_OUTPUT, *(output.nbytes for output in outputs if isinstance(output, Tensor))]
    )
    return Operation("other", 0, num_bytes, (1 << (largest - 1).bit_length(),))


def _num_bytes(value: object) -> int:
    """Bytes of a tensor in memory: one that is expanded has fewer than elements."""
    return min(value.nbytes, value.untyped_storage().nbytes()) if isinstance(value, Tensor) else 0


@torch.inference_mode()
def prefill_operations(model: "PreTrainedModel", batch_size: int, length: int) -> list[Operation]:
    """A forward pass over (batch_size, length) tokens that fills a cache and computes the last
    position's logits.
    """
    with Counter() as counter:
        model(_tokens(model, batch_size, length), use_cache=True, logits_to_keep=1)
    return counter.operations


@torch.inference_mode()
def decode_operations(model: "PreTrainedModel", batch_size: int, context: int) -> list[Operation]:
    """One more token for each of ``batch_size`` sequences, of which ``context`` tokens are in the
    cache.
    """
    cache = model(
        _tokens(model, batch_size, context), use_cache=True, logits_to_keep=1
    ).past_key_values
    with Counter() as counter:
        model(
            _tokens(model, batch_size, 1), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
    return counter.operations


def _tokens(model: "PreTrainedModel", batch_size: int, length: int) -> Tensor:
    return torch.randint(2, model.config.vocab_size, (batch_size, length), device=model.device)


class Size:
    """Parameters, FLOPs and bytes of a model, from its config alone."""

    def __init__(self, config: "PretrainedConfig", dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self.at_0, self.at_1 = (model_size(config, context) for context in (0, 1))

    def as_dict(self) -> dict[str, int]:
        """For the results."""
        names = ("num_parameters", "num_layers", "width")
        return {
            **{name: self.at_0[name] for name in names},
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.cache_bytes,
        }

    @property
    def weight_bytes(self) -> int:
        """Weights that every pass reads: an embedding that is not tied to the head is looked up,
        not read.
        """
        looked_up = (
            0
            if self.config.tie_word_embeddings
            else self.config.vocab_size * self.config.hidden_size
        )
        return (self.at_0["num_parameters"] - looked_up) * self.dtype.itemsize

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in every layer."""
        config = self.config
        head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        num_key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return 2 * config.num_hidden_layers * num_key_heads * head_dim * self.dtype.itemsize

    def prefill(self, batch_size: int, length: int) -> dict[str, int]:
        """{flops, num_bytes} of a pass over a prompt: every token sees half of it, and only the
        last one's logits are computed.
        """
        head = 2 * self.config.hidden_size * self.config.vocab_size
        flops = batch_size * (length * (self._flops_per_token(length // 2) - head) + head)
        return {
            "flops": flops,
            "num_bytes": self.weight_bytes + batch_size * length * self.cache_bytes,
        }

    def decode(self, batch_size: int, context: int) -> dict[str, int]:
        """{flops, num_bytes} of a token for each of ``batch_size`` sequences that see ``context``
        tokens.
        """
        flops = batch_size * self._flops_per_token(context)
        return {
            "flops": flops,
            "num_bytes": self.weight_bytes + batch_size * context * self.cache_bytes,
        }

    def _flops_per_token(self, context: int) -> int:
        without, of_one = (
            self.at_0["flops_per_token"],
            self.at_1["flops_per_token"] - self.at_0["flops_per_token"],
        )
        return without + context * of_one


class Rates:
    """What the device reaches at the shapes of one model. Each rate is measured when it is first
    asked for.
    """

    def __init__(self, dense: "PreTrainedModel", stopwatch: Stopwatch) -> None:
        self.dtype, self.stopwatch = dense.dtype, stopwatch
        self.num_layers, self.width = dense.config.num_hidden_layers, dense.config.intermediate_size
        projections = [module for module in dense.modules() if isinstance(module, nn.Linear)]
        self.products = {(each.in_features, each.out_features) for each in projections}
        self.weight_bytes = sum(each.weight.nbytes for each in projections)
        self.measured: dict[str, float] = {}
        """FLOP/s and bytes/s by name."""

    def seconds(self, operations: list[Operation], width: int) -> float:
        """Time of these operations of a model with this FFN width."""
        return sum(self._seconds(operation, width) for operation in operations)

    def _seconds(self, operation: Operation, width: int) -> float:
        if operation.kind == "gemm":
            rows, inputs, outputs = operation.shape
            return operation.flops / self.gemm(rows, *self._of_dense(inputs, outputs, width))
        if operation.kind == "attention":
            return operation.flops / self.attention(*operation.shape)
        return operation.num_bytes / self.elementwise(*operation.shape)

    def _of_dense(self, inputs: int, outputs: int, width: int) -> tuple[int, int]:
        """The dense model's product in the place of one of a model with another FFN width (a fused
        gate and up has twice that).
        """
        if (inputs, outputs) in self.products:
            return inputs, outputs
        to_dense = {width: self.width, 2 * width: 2 * self.width}
        return to_dense.get(inputs, inputs), to_dense.get(outputs, outputs)

    def gemm(self, rows: int, inputs: int, outputs: int) -> float:
        """FLOP/s of ``rows`` tokens through one projection after the other, until as many weights
        as the model's were read.
        """

        def make() -> list[Call]:
            left = self._normal(rows, inputs)
            weight_bytes = inputs * outputs * self.dtype.itemsize
            num_weights = max(
                1, min(self.weight_bytes, self.stopwatch.flush.nbytes) // weight_bytes
            )
            return [
                functools.partial(linear, left, self._normal(outputs, inputs))
                for _ in range(num_weights)
            ]

        return self._rate(
            f"gemm {rows} x {inputs} x {outputs}, FLOP/s", 2 * rows * inputs * outputs, make
        )

    def attention(
        self, batch: int, heads: int, length: int, head_dim: int, key_length: int, key_heads: int
    ) -> float:
        """FLOP/s of causal attention where there are several queries, counting the full square; of
        one query over its context.

        Keys and values of several queries were just computed; those of one lie in the cache, of
        which every layer has its own."""

        def make() -> list[Call]:
            query = self._normal(batch, heads, length, head_dim)
            caches = [
                [self._normal(batch, key_heads, key_length, head_dim) for _ in range(2)]
                for _ in range(1 if length > 1 else self.num_layers)
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
        return self._rate(name, 4 * batch * heads * length * head_dim * key_length, make)

    def elementwise(self, num_bytes: int) -> float:
        """Bytes/s, read and written, of an operation that writes ``num_bytes`` and reads as many
        that have just been written.
        """

        def make() -> list[Call]:
            source = self._normal(num_bytes // self.dtype.itemsize)
            return [source.abs]

        return self._rate(f"elementwise of {num_bytes} bytes, byte/s", 2 * num_bytes, make)

    def _rate(self, name: str, amount: int, make: Callable[[], list[Call]]) -> float:
        """Amount per second of calls that follow one another."""
        if name not in self.measured:
            calls = make()
            calls[0]()
            seconds = self.stopwatch.time_ms(calls[0], warm=True) / 1e3
            calls = list(
                itertools.islice(itertools.cycle(calls), max(1, int(LAP_SECONDS / seconds)))
            )

            def lap() -> None:
                for call in calls:
                    call()

            times_ms = [self.stopwatch.time_ms(lap, warm=True) for _ in range(NUM_TIMINGS)]
            self.measured[name] = amount * len(calls) / (statistics.median(times_ms) / 1e3)
        return self.measured[name]

    def _normal(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=self.dtype, device=self.stopwatch.device)

"""The operations that PyTorch dispatches in a pass of a model, with their FLOPs and bytes.

They are counted as they run, for any family and attention, so no formula has to know the model.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
SMALLEST_OUTPUT = 1 << 16  # bytes; the time of a smaller operation is that of its call


@dataclass(frozen=True)
class Operation:
    """What one operation costs."""

    kind: Literal["gemm", "attention", "other"]
    flops: int
    num_bytes: int
    """Bytes of inputs and outputs, each once."""
    shape: tuple[int, ...] = ()
    """gemm: (rows, inputs, outputs). attention: (batch, heads, query_length, head_dim, key_length,
    key_heads). other: (bytes of the output,), rounded up to a power of two."""


class OperationCounter(TorchDispatchMode):
    """Lists the operations that run inside its ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode linear, matmul and the like arrive whole; they are counted as the
        # operations that they consist of.
        with self:
            decomposed = func.decompose(*args, **kwargs)
        if decomposed is not NotImplemented:
            return decomposed
        result = func(*args, **kwargs)
        if not func.is_view and func.overloadpacket not in NO_TRAFFIC:
            self.operations.append(cost(func.overloadpacket, args, kwargs, result))
        return result


def cost(function: Any, args: Any, kwargs: Any, result: Any) -> Operation:
    """Count one call of an operation, from its arguments and its result."""
    outputs = tree_flatten(result)[0]
    num_bytes = sum(map(_num_bytes, [*tree_flatten((args, kwargs))[0], *outputs]))
    if function in MATRIX_PRODUCTS:
        left, right = args[MATRIX_PRODUCTS[function] :][:2]
        flops = 2 * left.numel() * right.shape[-1]
        return Operation("gemm", flops, num_bytes, (left.shape[-2], *right.shape[-2:]))
    if "scaled_dot_product" in str(function):
        query, key = args[:2]
        batch, heads, length, head_dim = query.shape
        key_heads, key_length = key.shape[1:3]
        # two products; the full square also where attention is causal, as Rates.attention counts
        flops = 4 * batch * heads * length * key_length * head_dim
        shape = (batch, heads, length, head_dim, key_length, key_heads)
        return Operation("attention", flops, num_bytes, shape)
    if function is torch.ops.aten.embedding:  # reads the rows that it writes, not the whole table
        num_bytes = 2 * _num_bytes(outputs[0])
    sizes = [output.nbytes for output in outputs if isinstance(output, Tensor)]
    largest = max([SMALLEST_OUTPUT, *sizes])
    return Operation("other", 0, num_bytes, (1 << (largest - 1).bit_length(),))


def _num_bytes(value: object) -> int:
    """Bytes of a tensor in memory; an expanded one has fewer than its elements take."""
    return min(value.nbytes, value.untyped_storage().nbytes()) if isinstance(value, Tensor) else 0


@torch.inference_mode()
def prefill_operations(model: "PreTrainedModel", batch_size: int, length: int) -> list[Operation]:
    """A forward pass over (batch_size, length) tokens that fills a KV cache and computes the logits
    of the last position.
    """
    with OperationCounter() as counter:
        model(_tokens(model, batch_size, length), use_cache=True, logits_to_keep=1)
    return counter.operations


@torch.inference_mode()
def decode_operations(model: "PreTrainedModel", batch_size: int, context: int) -> list[Operation]:
    """One decode step of ``batch_size`` sequences with ``context`` tokens each in the KV cache."""
    prompt = _tokens(model, batch_size, context)
    cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    with OperationCounter() as counter:
        new = _tokens(model, batch_size, 1)
        model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return counter.operations


def _tokens(model: "PreTrainedModel", batch_size: int, length: int) -> Tensor:
    return torch.randint(2, model.config.vocab_size, (batch_size, length), device=model.device)

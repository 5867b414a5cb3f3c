"""What a mixture of experts computes when no token can go to some of its experts: the model that
one without them must equal.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ptl_fast.model.routing import Routed


class _MinusInfinity(TorchFunctionMode):
    """Sets logits to minus infinity where a router's weight is multiplied with.

    Args:
        gone: by the address of a router's weight, the experts that no token can go to.
    """

    def __init__(self, gone: dict[int, Tensor]) -> None:
        super().__init__()
        self.gone, self.seen = gone, set[int]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is not nn.functional.linear:
            return found
        address = (args[1] if len(args) > 1 else (kwargs or {})["weight"]).data_ptr()
        if address not in self.gone:
            return found
        self.seen.add(address)
        return found.index_fill(-1, self.gone[address], float("-inf"))


@contextmanager
def unrouted(
    model: nn.Module, mixtures: Sequence[Routed], kept: Sequence[Sequence[int]]
) -> Iterator[None]:
    """Inside, no token goes to any but the kept experts.

    Raises:
        AssertionError: a router was not seen at work.
    """
    gone, biases = {}, []
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for routed, own in zip(mixtures, kept, strict=True):
        for name, dim in routed.router.items():
            tensor = tensors[name]
            others = [index for index in range(tensor.shape[dim]) if index not in own]
            if tensor.dim() > 1 and dim == 0:
                gone[tensor.data_ptr()] = torch.tensor(others)
            else:
                # one that only decides on the choice, and so is added after the logits
                biases.append((tensor, tensor.detach().clone()))
                tensor.data.index_fill_(dim, torch.tensor(others), -1e4)
    watched = _MinusInfinity(gone)
    try:
        with watched:
            yield
    finally:
        for tensor, before in biases:
            tensor.data.copy_(before)
    assert watched.seen == gone.keys(), "a router is no linear layer"

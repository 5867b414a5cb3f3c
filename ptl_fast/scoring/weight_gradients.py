"""The loss's gradient of every FFN weight over a corpus, for first-order scores of weights.

Shape suffixes: L layers, I FFN width.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed
from ptl_kernels import GatedFfn


class WeightGradients:
    """Sums of dL/dW over backward passes, for the weights of every FFN's linear layers.

    In fp32 (fp64 for fp64 weights): as much memory as the FFNs' weights take in fp32. Biases have
    none.
    """

    def __init__(self, ffns: Iterable[GatedFfn]) -> None:
        self.ffns = list(ffns)
        self.totals = {
            weight: torch.zeros_like(weight, dtype=_wide_dtype(weight), requires_grad=False)
            for ffn in self.ffns
            for weight in _weights(ffn)
        }

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Inside this context backward passes add to the sums, and leave no ``grad`` behind.

        The model's other parameters are frozen meanwhile.
        """
        with ExitStack() as stack:
            stack.enter_context(frozen(model, but=self.totals))
            for weight in self.totals:
                stack.callback(setattr, weight, "grad", weight.grad)
                weight.grad = None
                stack.callback(weight.register_post_accumulate_grad_hook(self._add).remove)
            yield

    def products(self) -> Tensor:
        """Return each neuron's sum over its weights of |w * dL/dw|, (num_layers, width) fp64, CPU.

        A neuron's weights are its rows of gate and up, and its column of down. dL/dw is summed over
        all ranks before the product; all ranks must call this.
        """
        return torch.stack([self._products_of(ffn) for ffn in self.ffns]).cpu()

    @torch.no_grad()
    def _products_of(self, ffn: GatedFfn) -> Tensor:
        *inputs, down = (self._product(weight) for weight in _weights(ffn))
        rows = [product.sum(1) for product in inputs]
        # one weight matrix holds gate's rows above up's
        if ffn.fused:
            rows = list(rows[0].chunk(2))
        return torch.stack([*rows, down.sum(0)]).sum(0)

    def _product(self, weight: Tensor) -> Tensor:
        # one matrix at a time: summing over ranks makes a copy
        total = distributed.summed({"gradient": self.totals[weight]})["gradient"]
        return (weight.detach().double() * total.double()).abs()

    def _add(self, weight: Tensor) -> None:
        """Hook after a backward pass: sums of bf16 gradients would stall in bf16."""
        assert weight.grad is not None
        self.totals[weight] += weight.grad
        weight.grad = None


@contextmanager
def frozen(model: nn.Module, but: Iterable[Tensor] = ()) -> Iterator[None]:
    """Inside this context only the parameters ``but`` require a gradient; their flags come back.

    Nobody reads the others' gradients, which would take memory and time.
    """
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    # a set, as a list would compare the tensors' elements
    free = set(but)
    for parameter in before:
        parameter.requires_grad_(parameter in free)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _weights(ffn: GatedFfn) -> list[Tensor]:
    """The weights of the input projections, and the down projection's at the end."""
    return [*(linear.weight for linear in ffn.inputs), ffn.down.weight]


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)

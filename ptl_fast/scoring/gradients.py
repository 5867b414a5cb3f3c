"""The loss's gradients over a corpus, for first-order scores: of activations and of FFN weights.

Shape suffixes: L layers, I FFN width.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ptl_fast.base import distributed
from ptl_kernels import Ffn, matrix


class WeightGradients:
    """Sums of dL/dW over backward passes, for the weights of every FFN's linear layers.

    In fp32 (fp64 for fp64 weights): as much memory as the FFNs' weights take in fp32. Biases have
    none.
    """

    def __init__(self, ffns: Iterable[Ffn]) -> None:
        self.ffns = list(ffns)
        self.totals = {
            weight: torch.zeros_like(weight, dtype=wide(weight[:0]).dtype, requires_grad=False)
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
    def _products_of(self, ffn: Ffn) -> Tensor:
        linears = (*ffn.inputs, ffn.down)
        *inputs, down = (
            product if matrix(linear) is linear.weight else product.T
            for linear, product in zip(linears, map(self._product, _weights(ffn)), strict=True)
        )
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
def watch_activations(model: nn.Module, ffns: Iterable[Ffn], gradient_LI: Tensor) -> Iterator[None]:
    """Add |a * dL/da|, summed over tokens, to each neuron's total in backward passes inside.

    Parameters are frozen meanwhile: nobody reads their gradients, which take memory and time.
    Padding adds nothing, as its gradient is zero: it has no loss, and no other token attends to it.
    """

    def add(total_I: Tensor, activation: Tensor, gradient: Tensor) -> None:
        total_I += (wide(activation) * wide(gradient)).abs_().flatten(0, -2).sum(0)

    def watch_neurons(
        total_I: Tensor, module: nn.Module, args: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        # with frozen parameters no tensor requires a gradient, so the first layer's activation is
        # made the leaf of the graph; those of later layers depend on it
        activation = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        activation.register_hook(partial(add, total_I, activation.detach()))
        return (activation, *args[1:])

    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        for total_I, ffn in zip(gradient_LI, ffns, strict=True):
            stack.callback(
                ffn.down.register_forward_pre_hook(partial(watch_neurons, total_I)).remove
            )
        yield


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


def wide(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or as it is if fp64: bf16 and fp16 are too coarse for sums."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _weights(ffn: Ffn) -> list[Tensor]:
    """The weights of the input projections, and the down projection's at the end."""
    return [*(linear.weight for linear in ffn.inputs), ffn.down.weight]

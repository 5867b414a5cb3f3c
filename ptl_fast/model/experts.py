"""Mixtures of experts: each expert of a layer as an FFN of its own.

transformers stacks a layer's experts into tensors of three dimensions, and runs all in one forward
pass of the module that holds them, the stack. Here each expert gets parts like any other FFN:
linear layers that are views of its slice of the stack. While somebody watches one of its down
projections (a forward hook), the stack runs its experts one after another, so that the hook sees
what enters and leaves it; otherwise it runs as its class does.

An expert sees only the tokens routed to it, and the layer's output is the sum of its experts'
outputs, each times the router's weight g. So what enters a down projection here is g[t] a[t]: sums
of squares, Gram matrices and least squares over it are about the layer's output. ``rows_of`` says
which of a batch's tokens its rows are.

FFNs of which the same field of the config says the width, such as shared experts, lose neurons
beside the experts (``Beside``); others, such as dense layers of another width, keep theirs.

Shape suffixes: E experts, I width, H hidden size, T tokens, S the tokens routed to one expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ptl_kernels import Ffn

if TYPE_CHECKING:
    from collections.abc import Sequence

# what is kept on a stack: its experts as FFNs
FFNS = "ptl_fast_ffns"


@dataclass(frozen=True)
class Layout:
    """How a stack's tensors hold the experts' projections."""

    gated: bool
    interleaved: bool
    """Whether gate's and up's neurons alternate; else gate's come first."""
    transposed: bool
    """Whether an expert's matrices are (in_features, out_features)."""

    @property
    def inputs(self) -> str:
        """The name of the input projections' parameter."""
        return "gate_up_proj" if self.gated else "up_proj"

    def split(self, both: Tensor) -> list[Tensor]:
        """[gate's rows, up's rows] of an expert's input projections, or [up's]."""
        if not self.gated:
            return [both]
        return [both[::2], both[1::2]] if self.interleaved else list(both.chunk(2))

    def join(self, parts: list[Tensor]) -> Tensor:
        """The reverse of ``split``, along the last dimension."""
        if not self.interleaved:
            return torch.cat(parts, -1)
        return torch.stack(parts, -1).flatten(-2)

    def places(self, kept_K: Tensor, width: int) -> Tensor:
        """Where the rows of these neurons are among those of the input projections."""
        rows = torch.arange(width * (1 + self.gated))
        parts = [part[kept_K] for part in self.split(rows)]
        return self.join(parts)


def layout(stack: nn.Module) -> Layout | None:
    """How a module holds stacked experts; None: it holds none, or in a form that is not known."""
    down = getattr(stack, "down_proj", None)
    if not (isinstance(down, nn.Parameter) and down.dim() == 3):
        return None
    form: Any = stack
    if hasattr(stack, "has_gate"):  # transformers' decorator use_experts_implementation
        if form.has_post_expert_norm:
            return None
        return Layout(form.has_gate, form.has_gate and not form.is_concatenated, form.is_transposed)
    # Llama 4: each expert gets all tokens, times the router's weight, which is mostly zero
    return Layout(True, False, True) if type(stack).__name__ == "Llama4TextExperts" else None


def stacks(layer: nn.Module) -> list[nn.Module]:
    """The stacks of experts in a decoder layer."""
    return [module for module in layer.modules() if layout(module) is not None]


class View(nn.Module):
    """One projection of one expert: a linear layer whose weight is a view of a larger one."""

    def __init__(self, holder: nn.Module, index: int, part: int | None) -> None:
        """
        Args:
            holder: has the larger weight.
            index: the expert's.
            part: of the input projections, 0 gate and 1 up; None: the down projection.
        """
        super().__init__()
        # in a list, so that it does not become a submodule
        self.holder, self.index, self.part = [holder], index, part
        self.token_S: Tensor | None = None
        """While it runs, the place of each of its rows among the batch's tokens; None: all."""
        self.router_S: Tensor | None = None
        """And the router's weight of each."""

    def sliced(self, name: str) -> Tensor | None:
        """The expert's part of ``weight`` or ``bias``."""
        (stack,) = self.holder
        form, suffix = layout(stack), "" if name == "weight" else "_bias"
        assert form is not None
        own = getattr(stack, (form.inputs if self.part is not None else "down_proj") + suffix, None)
        if own is None:
            return None
        own = own[self.index]
        straight = own.T if form.transposed and name == "weight" else own
        return straight if self.part is None else form.split(straight)[self.part]

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), in the memory of the larger one."""
        found = self.sliced("weight")
        assert found is not None
        return found

    @property
    def bias(self) -> Tensor | None:
        """(out_features,), or None."""
        return self.sliced("bias")

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def forward(self, rows_SI: Tensor) -> Tensor:
        """Project rows that have the router's weight already; here the bias gets it."""
        out_SH, bias_H = linear(rows_SI, self.weight), self.bias
        if bias_H is None or self.router_S is None:
            return out_SH if bias_H is None else out_SH + bias_H
        return out_SH + self.router_S[:, None].to(out_SH.dtype) * bias_H


class SharedView(View):
    """The same of several shared experts that are one FFN of plain linear layers."""

    def __init__(self, holder: nn.Module, index: int, part: int | None, parts: int) -> None:
        super().__init__(holder, index, part)
        self.parts = parts

    def sliced(self, name: str) -> Tensor | None:
        (whole,) = self.holder
        own = getattr(whole, name)
        if own is None or (self.part is None and name == "bias"):
            # the down projection's bias is there once for all of them
            return own if self.index == 0 else None
        return own.chunk(self.parts, dim=1 if self.part is None else 0)[self.index]


class OneByOne:
    """A stack's forward pass: the experts one after another while one is watched, else as its
    class does it. An object and no closure: a deepcopy of the model runs on its own weights.
    """

    def __init__(self, stack: nn.Module, ffns: list[Ffn]) -> None:
        self.stack, self.ffns = stack, ffns

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if not any(_is_watched(ffn.down) for ffn in self.ffns):
            return type(self.stack).forward(self.stack, *args, **kwargs)
        return self.run(*args, *kwargs.values())

    def run(self, hidden_TH: Tensor, *routes: Tensor) -> Tensor:
        """Run the experts one after another.

        Args:
            hidden_TH: tokens; without routes (Llama 4) a copy of them for each expert.
            routes: the experts that each token goes to, (T, k), and the router's weights of them.
        """
        if not routes:
            own_ETH = hidden_TH.view(len(self.ffns), -1, hidden_TH.shape[-1])
            return torch.cat(list(map(self._of_copies, self.ffns, own_ETH)))
        index_Tk, router_Tk = routes
        out_TH = torch.zeros_like(hidden_TH)
        for index, ffn in enumerate(self.ffns):
            token_S, place_S = torch.where(index_Tk == index)
            if len(token_S):
                router_S = router_Tk[token_S, place_S]
                own_SH = self._expert(ffn, hidden_TH[token_S], token_S, router_S)
                out_TH = out_TH.index_add(0, token_S, own_SH.to(out_TH.dtype))
        return out_TH

    def _of_copies(self, ffn: Ffn, hidden_TH: Tensor) -> Tensor:
        """An expert of Llama 4: a token that is not its own is zero, and so is what it computes."""
        token_S = hidden_TH.detach().ne(0).any(-1).nonzero().squeeze(1)
        own_SH = self._expert(ffn, hidden_TH[token_S], token_S, hidden_TH.new_ones(len(token_S)))
        return torch.zeros_like(hidden_TH).index_add(0, token_S, own_SH)

    def _expert(self, ffn: Ffn, hidden_SH: Tensor, token_S: Tensor, router_S: Tensor) -> Tensor:
        """An expert's output for its tokens, times the router's weight."""
        active_SI, down = self._active(ffn, hidden_SH), cast("View", ffn.down)
        down.token_S, down.router_S = token_S, router_S
        try:
            return down((active_SI * router_S[:, None]).to(active_SI.dtype))
        finally:
            down.token_S = down.router_S = None

    def _active(self, ffn: Ffn, hidden_SH: Tensor) -> Tensor:
        stack: Any = self.stack
        form = layout(stack)
        assert form is not None
        parts = [linear(hidden_SH, each.weight, each.bias) for each in ffn.inputs]
        if not form.gated:
            return stack.act_fn(parts[0])
        if hasattr(stack, "_apply_gate"):
            return stack._apply_gate(form.join(parts))
        return stack.act_fn(parts[0]) * parts[1]


class SharedOneByOne(OneByOne):
    """The same of shared experts that are one FFN: every token goes to all of them."""

    def run(self, hidden_TH: Tensor, *routes: Tensor) -> Tensor:
        own: Any = self.stack
        outputs = []
        for ffn in self.ffns:
            gate_TI, up_TI = (linear(hidden_TH, each.weight, each.bias) for each in ffn.inputs)
            outputs.append(ffn.down(own.act_fn(gate_TI) * up_TI))
        return torch.stack(outputs).sum(0)


def _is_watched(down: nn.Module) -> bool:
    return bool(down._forward_hooks or down._forward_pre_hooks)


def experts_of(stack: nn.Module) -> list[Ffn]:
    """Each expert of a stack as an FFN; the same objects every time, so that hooks are seen.

    Raises:
        ValueError: run one after another, they do not compute what the stack does.
    """
    form = layout(stack)
    assert form is not None
    number, kept = len(stack.down_proj), vars(stack).get(FFNS)  # type: ignore[arg-type]
    if kept is not None and len(kept) == number:
        return kept
    parts = range(1 + form.gated)
    ffns = [
        Ffn(stack, [View(stack, index, part) for part in parts], View(stack, index, None))  # type: ignore[misc, arg-type]
        for index in range(number)
    ]
    return _kept(stack, ffns, OneByOne(stack, ffns))


def shared_of(module: nn.Module, inputs: "Sequence[str]", down: str, parts: int) -> list[Ffn]:
    """The same of shared experts that are one FFN, ``parts`` times as wide as one of them."""
    kept = vars(module).get(FFNS)
    if kept is not None:
        return kept
    linears = [getattr(module, name) for name in inputs]
    ffns = [
        Ffn(
            module,
            [SharedView(each, index, part, parts) for part, each in enumerate(linears)],  # type: ignore[misc]
            SharedView(getattr(module, down), index, None, parts),  # type: ignore[arg-type]
        )
        for index in range(parts)
    ]
    return _kept(module, ffns, SharedOneByOne(module, ffns))


def _kept(module: nn.Module, ffns: list[Ffn], forward: OneByOne) -> list[Ffn]:
    """Let a module run these, and keep them on it."""
    vars(module).pop("forward", None)
    _check(module, forward)
    vars(module).update({FFNS: ffns, "forward": forward})
    return ffns


@torch.no_grad()
def _check(module: nn.Module, forward: OneByOne) -> None:
    """Compare our forward pass with the module's on made-up tokens."""
    down = forward.ffns[0].down.weight
    if down.device.type == "meta":
        return
    number, hidden_size = len(forward.ffns), len(down)
    # values that look random without drawing from a generator
    hidden_TH = torch.sin(torch.arange(4.0 * hidden_size) * 12.9898).view(4, -1).to(down)
    routes = [
        torch.arange(8, device=down.device).view(4, 2) % number,
        torch.linspace(0.25, 1, 8).view(4, 2).to(down),
    ]
    if isinstance(forward, SharedOneByOne):
        routes = []
    elif not hasattr(module, "has_gate"):
        hidden_TH, routes = hidden_TH.repeat(number, 1), []
    theirs = type(module).forward(module, hidden_TH, *routes).double()
    error = (forward.run(hidden_TH, *routes).double() - theirs).norm() / theirs.norm()
    # NaN weights are found elsewhere
    if error > (1e-3 if down.dtype in (torch.float32, torch.float64) else 5e-2):
        raise ValueError(
            f"{type(module).__name__} computes something else than its experts one by one"
        )


@dataclass(frozen=True)
class Beside:
    """An FFN whose width the experts' field says too."""

    path: str
    """From a decoder layer; not every layer has it."""
    inputs: tuple[str, ...]
    """Names of its linear layers."""
    down: str
    parts: int
    """How many times as wide as an expert it is."""

    def ffns(self, layer: nn.Module) -> list[Ffn]:
        """As FFNs of an expert's width; none if the layer has no such FFN."""
        try:
            module = attrgetter(self.path)(layer)
            linears = [getattr(module, name) for name in (*self.inputs, self.down)]
        except AttributeError:
            return []
        if self.parts > 1:
            return shared_of(module, self.inputs, self.down, self.parts)
        return [Ffn(module, linears[:-1], linears[-1])]


@dataclass(frozen=True)
class Mixture:
    """What has the experts' width in a model with experts, besides them."""

    beside: tuple[Beside, ...] = field(default_factory=tuple)

    def ffns(self, layer: nn.Module) -> list[Ffn]:
        """A decoder layer's experts, and then the others, as FFNs of one width."""
        routed = [ffn for stack in stacks(layer) for ffn in experts_of(stack)]
        return routed + [ffn for each in self.beside for ffn in each.ffns(layer)]


def is_routed(ffn: Ffn) -> bool:
    """Whether an FFN is an expert that the router chooses, or one of several shared ones: its
    parts are views, and only hooks see what it computes.
    """
    return isinstance(ffn.down, View)


def rows_of(down: nn.Module, values: Tensor) -> Tensor:
    """What one value a token is for each row of what is entering a down projection.

    Args:
        values: one a token of the batch, in any shape.
    """
    token_S = getattr(down, "token_S", None)
    return values.flatten() if token_S is None else values.flatten()[token_S]


def router_weights(down: nn.Module, rows_SI: Tensor) -> Tensor:
    """What a bias of a down projection is multiplied by in each row, (S, 1)."""
    router_S = getattr(down, "router_S", None)
    return torch.ones_like(rows_SI[:, :1]) if router_S is None else router_S[:, None].to(rows_SI)


def named_ffns(mixture: Mixture, layers: nn.ModuleList) -> Iterator[tuple[str, Ffn]]:
    """All FFNs by name, a layer's number and theirs in it."""
    for index, layer in enumerate(layers):
        for number, ffn in enumerate(mixture.ffns(layer)):
            yield f"{index}.{number}", ffn

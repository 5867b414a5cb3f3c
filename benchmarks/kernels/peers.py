"""What our ops are compared with: eager PyTorch with and without statistics hooks, torch.compile,
Liger, copies and bare GEMMs.

Every call takes inputs by name and returns results by name. Shape suffixes: T tokens, I FFN width,
K kept neurons.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear

from ptl_kernels import reference

Tensors = dict[str, Tensor]
Call = Callable[[Tensors], Tensors]

STATISTICS = ("square", "sum", "absolute", "maximum")
WEIGHTS = ("gate_weight", "up_weight", "down_weight")


def _unchanged(inputs: Tensors) -> Tensors:
    return inputs


@dataclass(frozen=True)
class Contender:
    """One way to do an op's work: ours or a peer's."""

    run: Call
    """The timed call. Results that the twin has too are compared with it; a ceiling may have none.
    """
    prepare: Call = _unchanged
    """Untimed, before each call: fresh copies, zeroed totals, the graph of a backward pass. Leaves
    the inputs as they are.
    """
    missing: str | None = None
    """Why it cannot run on this device; None if it can."""


def of_gated_activation(
    activation: str, device: str, all_statistics: bool, all_peers: bool
) -> dict[str, Contender]:
    """Peers of the forward pass, with all four statistics or with the squares only.

    ``all_peers`` adds the ModelOpt-style hook, Liger and torch.compile. Give it with
    ``all_statistics`` only: torch.compile takes all four.
    """
    plain, liger, no_liger = eager(activation), liger_forward(activation), liger_missing(device)
    peers = {"eager, no statistics": Contender(plain)}
    if all_statistics:
        peers["eager + naive square/abs/max hook"] = with_hook(plain, naive_hook)
    else:
        peers["eager + naive square hook"] = with_hook(plain, square_hook)
    if all_peers:
        peers["eager + ModelOpt-style hook"] = with_hook(plain, modelopt_hook)
        peers["Liger, no statistics"] = Contender(liger, missing=no_liger)
        peers["Liger + ModelOpt-style hook"] = with_hook(liger, modelopt_hook, no_liger)
        peers["torch.compile, same statistics"] = Contender(
            compiled(activation), with_totals(torch.float32)
        )
    peers["copy ceiling"] = Contender(copy)
    return peers


def of_backward(activation: str, device: str) -> dict[str, Contender]:
    """Peers of the backward pass."""
    return {
        "eager autograd": Contender(backward, with_graph(eager(activation))),
        "Liger": Contender(backward, with_graph(liger_forward(activation)), liger_missing(device)),
    }


def of_ffn(activation: str) -> dict[str, Contender]:
    """Peers of a whole FFN: transformers' eager modules, without and with a hook, and the three
    GEMMs alone.
    """

    def activate(inputs: Tensors) -> Tensors:
        gate, up = (
            linear(inputs["hidden"], inputs["gate_weight"]),
            linear(inputs["hidden"], inputs["up_weight"]),
        )
        return {"out": reference.activate(gate, activation) * up}

    def plain(inputs: Tensors) -> Tensors:
        return {"out": linear(activate(inputs)["out"], inputs["down_weight"])}

    def hooked(inputs: Tensors) -> Tensors:
        active = activate(inputs)["out"]
        statistics = naive_hook(active, inputs)
        return {"out": linear(active, inputs["down_weight"]), **statistics}

    def gemms(inputs: Tensors) -> Tensors:
        both = input_gemms(inputs)
        return {**both, "down": linear(both["gate"], inputs["down_weight"])}

    return {
        "eager, no statistics": Contender(plain),
        "eager + naive square/abs/max hook": Contender(hooked, with_totals(torch.float32)),
        "GEMM ceiling": Contender(gemms),
    }


def eager(activation: str) -> Call:
    """Two ops: the activation, then the product."""

    def run(inputs: Tensors) -> Tensors:
        return {"out": reference.activate(inputs["gate"], activation) * inputs["up"]}

    return run


def liger_forward(activation: str) -> Call:
    """Liger's SwiGLU or GEGLU."""

    def run(inputs: Tensors) -> Tensors:
        return {"out": _liger_function(activation)(inputs["gate"], inputs["up"])}

    return run


@functools.cache
def _liger_function(activation: str) -> Callable[[Tensor, Tensor], Tensor]:
    if activation == "silu":
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    return LigerGELUMulFunction.apply


def liger_missing(device: str) -> str | None:
    """Why Liger cannot run here, or None."""
    if device == "cpu":
        return "Liger has no CPU kernels"
    return None if importlib.util.find_spec("liger_kernel") else "liger-kernel is not installed"


def compiled(activation: str) -> Call:
    """torch.compile of activation, product and all four statistics, for one static shape."""

    def expression(
        gate: Tensor, up: Tensor, square: Tensor, total: Tensor, absolute: Tensor, maximum: Tensor
    ) -> Tensor:
        out = reference.activate(gate, activation) * up
        value = out.float()
        square += value.square().sum(0)
        total += value.sum(0)
        absolute += value.abs().sum(0)
        maximum.copy_(torch.maximum(maximum, value.abs().amax(0)))
        return out

    @functools.cache
    def compile_once() -> Callable[..., Tensor]:
        # Dynamo counts the shapes that it has compiled this function for, and past a limit falls
        # back to eager without an error: the row would then not be torch.compile's.
        torch.compiler.reset()
        return torch.compile(expression, dynamic=False)

    def run(inputs: Tensors) -> Tensors:
        totals = [inputs[name] for name in STATISTICS]
        out = compile_once()(inputs["gate"], inputs["up"], *totals)
        return {"out": out, **dict(zip(STATISTICS, totals, strict=True))}

    return run


def with_hook(
    forward: Call, hook: Callable[[Tensor, Tensors], Tensors], missing: str | None = None
) -> Contender:
    """A forward pass, then a statistics hook on its output."""

    def run(inputs: Tensors) -> Tensors:
        out = forward(inputs)["out"]
        return {"out": out, **hook(out, inputs)}

    return Contender(run, with_totals(torch.float32), missing)


def naive_hook(active_TI: Tensor, totals: Tensors) -> Tensors:
    """Sums of squares and magnitudes and the largest magnitude, one op after the other."""
    value_TI = active_TI.float()  # sums in bf16 would stall
    totals["square"] += value_TI.square().sum(0)
    magnitude_TI = value_TI.abs()
    totals["absolute"] += magnitude_TI.sum(0)
    torch.maximum(totals["maximum"], magnitude_TI.amax(0), out=totals["maximum"])
    return {name: totals[name] for name in ("square", "absolute", "maximum")}


def square_hook(active_TI: Tensor, totals: Tensors) -> Tensors:
    """Sums of squares."""
    totals["square"] += active_TI.float().square().sum(0)
    return {"square": totals["square"]}


def modelopt_hook(active_TI: Tensor, totals: Tensors) -> Tensors:
    """Mean magnitudes, as the hooks of NVIDIA's Model Optimizer take them: cast, abs, mean."""
    # kept under "absolute", whose total is zeroed like the others, and returned as what it is
    totals["absolute"] += active_TI.float().abs().mean(0)
    return {"absolute_mean": totals["absolute"]}


def with_totals(dtype: torch.dtype) -> Call:
    """Prepare zeroed totals, one vector a statistic."""

    def prepare(inputs: Tensors) -> Tensors:
        width = (
            inputs["gate_weight"].shape[0] if "gate_weight" in inputs else inputs["gate"].shape[1]
        )
        device = next(iter(inputs.values())).device
        return {
            **inputs,
            **{name: torch.zeros(width, dtype=dtype, device=device) for name in STATISTICS},
        }

    return prepare


def with_graph(forward: Call) -> Call:
    """Prepare a forward pass, whose graph the timed backward pass goes through."""

    def prepare(inputs: Tensors) -> Tensors:
        # copies: Liger writes the gradients over gate and up
        leaves = {name: inputs[name].clone().requires_grad_() for name in ("gate", "up")}
        with torch.enable_grad():  # the benchmark runs without gradients
            return {**leaves, **forward(leaves), "grad": inputs["grad"]}

    return prepare


def backward(inputs: Tensors) -> Tensors:
    """Gradients of gate and up through the prepared graph."""
    grad_gate, grad_up = torch.autograd.grad(
        inputs["out"], [inputs["gate"], inputs["up"]], inputs["grad"]
    )
    return {"grad_gate": grad_gate, "grad_up": grad_up}


def copy(inputs: Tensors) -> Tensors:
    """A ceiling: a copy that moves as many bytes as our op must, half of them read."""
    return {"copy": inputs["copy_to"].copy_(inputs["copy_from"])}


def input_gemms(inputs: Tensors) -> Tensors:
    """The gate and up projections alone."""
    return {name: linear(inputs["hidden"], inputs[f"{name}_weight"]) for name in ("gate", "up")}


def name_sums(sums_3: Tensor) -> Tensors:
    """The three sums of residual_change by name, so that each is checked on its own scale."""
    return dict(zip(("change", "change_squared", "cosine"), sums_3.unbind(), strict=True))


def eager_residual_change(inputs: Tensors) -> Tensors:
    """Norms and cosine in fp32, one op after the other, as a hook would compute them."""
    before_TH, after_TH = inputs["before"].float(), inputs["after"].float()
    change_T = torch.linalg.vector_norm(after_TH - before_TH, dim=-1)
    cosine_T = cosine_similarity(before_TH, after_TH, dim=-1)
    return name_sums(torch.stack([change_T.sum(), change_T.square().sum(), cosine_T.sum()]))


def fresh_copies(inputs: Tensors) -> Tensors:
    """Copies that may be changed in place."""
    return {name: tensor.clone() for name, tensor in inputs.items()}


def three_indexings(inputs: Tensors) -> Tensors:
    """Compact an FFN by indexing each of its matrices; the indices are on the device already."""
    gate, up, down = (inputs[name] for name in WEIGHTS)
    order_K = inputs["order"]
    return {"gate_weight": gate[order_K], "up_weight": up[order_K], "down_weight": down[:, order_K]}


def three_index_selects(inputs: Tensors) -> Tensors:
    """The same by index_select, which is the faster one on a CPU in float32."""
    gate, up, down = (inputs[name] for name in WEIGHTS)
    rows, columns = reference.compact_rows, reference.compact_columns
    order_K = inputs["order"]
    return {
        "gate_weight": rows(gate, order_K),
        "up_weight": rows(up, order_K),
        "down_weight": columns(down, order_K),
    }

"""Cases of the ops in an FFN's and a layer's forward and backward pass.

Each op has a function that takes its name and a setting and returns its Case. Shape suffixes:
T tokens, I FFN width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.kernels import peers
from benchmarks.kernels.case import GEMM_TOLERANCE, SUM_TOLERANCE, TOLERANCE, Case, Setting
from benchmarks.kernels.peers import STATISTICS, Contender, Tensors
from ptl_kernels import NeuronSums, gated_activation, reference, residual_change
from ptl_kernels.dual_gemm import dual_gemm
from ptl_kernels.gated_activation import Activation, Mode


def gated_activation_case(
    op: str, setting: Setting, mode: Mode = "fast", all_statistics: bool = True
) -> Case:
    """Activation times up with all four statistics, or with the squares only.

    All peers are measured against the fast mode with all four statistics; the other two forms are
    beside the eager peers and the copy.
    """
    activation = setting.shape.activation
    names = STATISTICS if all_statistics else STATISTICS[:1]

    def ours(inputs: Tensors) -> Tensors:
        return activate_and_sum(inputs["gate"], inputs["up"], activation, inputs, names, mode=mode)

    def make_inputs() -> Tensors:
        # the op reads gate and up and writes once, three tensors in all; a copy reads and writes
        # each of its elements, so one of half as many moves as many bytes
        num_elements = setting.activation_bytes // setting.dtype.itemsize * 3 // 2
        copy_from = setting.normal(num_elements)
        return {
            **setting.activations("gate", "up"),
            "copy_from": copy_from,
            "copy_to": copy_from.clone(),
        }

    return Case(
        op=op,
        setting=setting,
        make_inputs=make_inputs,
        twin=lambda inputs: twin_activation(inputs["gate"], inputs["up"], activation),
        ours=Contender(ours, peers.with_totals(torch.float64)),
        peers=peers.of_gated_activation(
            activation,
            setting.device,
            all_statistics,
            all_peers=all_statistics and mode == "fast",
        ),
        tolerance=TOLERANCE[setting.dtype],
        num_bytes=3 * setting.activation_bytes,
    )


def match_hf_case(op: str, setting: Setting) -> Case:
    """gated_activation with the roundings of transformers' modules."""
    return gated_activation_case(op, setting, mode="match_hf")


def square_case(op: str, setting: Setting) -> Case:
    """gated_activation with the one statistic that pruning by Eq. 4 of arXiv 2602.04919 needs."""
    return gated_activation_case(op, setting, all_statistics=False)


def backward_case(op: str, setting: Setting) -> Case:
    """Gradients of gate and up."""
    activation = setting.shape.activation

    def forward(inputs: Tensors) -> Tensors:
        return {"out": gated_activation(inputs["gate"], inputs["up"], activation)}

    return Case(
        op=op,
        setting=setting,
        make_inputs=lambda: setting.activations("gate", "up", "grad"),
        twin=lambda inputs: peers.backward(peers.with_graph(peers.eager(activation))(inputs)),
        ours=Contender(peers.backward, peers.with_graph(forward)),
        peers=peers.of_backward(activation, setting.device),
        tolerance=TOLERANCE[setting.dtype],
        num_bytes=5 * setting.activation_bytes,
    )


def ffn_case(op: str, setting: Setting) -> Case:
    """A whole FFN with all four statistics."""
    shape = setting.shape

    def ours(inputs: Tensors) -> Tensors:
        both = peers.input_gemms(inputs)
        # the activation is written over the gate, as collect_statistics does
        active = activate_and_sum(
            both["gate"], both["up"], shape.activation, inputs, out=both["gate"]
        )
        return {**active, "out": linear(active["out"], inputs["down_weight"])}

    def twin(inputs: Tensors) -> Tensors:
        both = peers.input_gemms(inputs)
        active = twin_activation(both["gate"], both["up"], shape.activation)
        return {**both, **active, "out": linear(active["out"], inputs["down_weight"])}

    return Case(
        op=op,
        setting=setting,
        make_inputs=lambda: {
            "hidden": setting.normal(shape.num_tokens, shape.hidden_size),
            **setting.weights(),
        },
        twin=twin,
        ours=Contender(ours, peers.with_totals(torch.float64)),
        peers=peers.of_ffn(shape.activation),
        tolerance=GEMM_TOLERANCE[setting.dtype],
    )


def dual_gemm_case(op: str, setting: Setting) -> Case:
    """Both input projections, the activation and all four statistics in one kernel."""
    shape = setting.shape

    def ours(inputs: Tensors) -> Tensors:
        sums = NeuronSums(*(inputs[name] for name in STATISTICS))
        out = dual_gemm(
            inputs["hidden"],
            inputs["gate_weight"],
            inputs["up_weight"],
            activation=shape.activation,
            sums=sums,
        )
        assert out is not None  # only store=False computes no output
        return {"out": out, **{name: inputs[name] for name in STATISTICS}}

    def vendor_then_fused(inputs: Tensors) -> Tensors:
        both = peers.input_gemms(inputs)
        return activate_and_sum(
            both["gate"], both["up"], shape.activation, inputs, out=both["gate"]
        )

    def twin(inputs: Tensors) -> Tensors:
        both = peers.input_gemms(inputs)
        return {**both, **twin_activation(both["gate"], both["up"], shape.activation)}

    with_totals = peers.with_totals(torch.float64)  # ours add up in fp64 across batches
    return Case(
        op=op,
        setting=setting,
        make_inputs=lambda: {
            "hidden": setting.normal(shape.num_tokens, shape.hidden_size),
            **setting.weights(),
        },
        twin=twin,
        ours=Contender(
            ours, with_totals, missing="there is no CPU kernel" if setting.device == "cpu" else None
        ),
        peers={
            "two vendor GEMMs alone": Contender(peers.input_gemms),
            "two vendor GEMMs + gated_activation": Contender(vendor_then_fused, with_totals),
        },
        tolerance=GEMM_TOLERANCE[setting.dtype],
    )


def residual_change_case(op: str, setting: Setting) -> Case:
    """The three sums over tokens of how a layer changes the residual stream."""
    shape = setting.shape

    def make_inputs() -> Tensors:
        # a layer changes the residual stream by a fraction of it
        before = setting.normal(shape.num_tokens, shape.hidden_size)
        return {
            "before": before,
            "after": before + setting.normal(shape.num_tokens, shape.hidden_size, scale=0.3),
        }

    def ours(inputs: Tensors) -> Tensors:
        residual_change(inputs["before"], inputs["after"], inputs["out_3"])
        return peers.name_sums(inputs["out_3"])

    def prepare(inputs: Tensors) -> Tensors:
        return {**inputs, "out_3": torch.zeros(3, dtype=torch.float64, device=setting.device)}

    return Case(
        op=op,
        setting=setting,
        make_inputs=make_inputs,
        twin=lambda inputs: peers.name_sums(
            reference.residual_change(inputs["before"], inputs["after"])
        ),
        ours=Contender(ours, prepare),
        peers={"eager cosine and norms": Contender(peers.eager_residual_change)},
        tolerance=SUM_TOLERANCE,
        num_bytes=2 * shape.num_tokens * shape.hidden_size * setting.dtype.itemsize,
    )


def activate_and_sum(
    gate_TI: Tensor,
    up_TI: Tensor,
    activation: Activation,
    totals: Tensors,
    names: Sequence[str] = STATISTICS,
    **options: Any,
) -> Tensors:
    """gated_activation, adding to the totals of these names."""
    out_TI = gated_activation(
        gate_TI, up_TI, activation, sums=NeuronSums(*(totals[name] for name in names)), **options
    )
    return {"out": out_TI, **{name: totals[name] for name in names}}


def twin_activation(gate_TI: Tensor, up_TI: Tensor, activation: Activation) -> Tensors:
    """The reference's activation and statistics, and the mean of |a| of ModelOpt-style hooks."""
    out_TI = reference.gated_activation(gate_TI, up_TI, activation)
    statistics = dict(zip(STATISTICS, reference.neuron_sums(out_TI), strict=True))
    return {"out": out_TI, **statistics, "absolute_mean": statistics["absolute"] / len(out_TI)}

"""What bench_kernels times: for each op its inputs, our call, the peers' calls, and the fp64 twin
that results must agree with.

Shape suffixes: T tokens, I FFN width, H hidden size, K kept neurons.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.kernels import peers
from benchmarks.kernels.peers import STATISTICS, Contender, Tensors
from ptl_kernels import (
    NeuronSums,
    compact_ffn_,
    gated_activation,
    hole_filling,
    reference,
    residual_change,
)
from ptl_kernels.compaction import compact_columns_, move_rows_
from ptl_kernels.dual_gemm import dual_gemm
from ptl_kernels.gated_activation import Activation, Mode

REMOVED = 0.1  # fraction of the neurons that compaction removes
ROWS_BYTES = 100_000_000  # of the layers whose rows one call moves, at least: about SmolLM2's

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


QUICK = [Shape("quick", 96, 64, 128)]
SHAPES = {
    "cpu": [
        Shape("SmolLM2-135M", 1024, 576, 1536),
        Shape("SmolLM2-135M", 2048, 576, 1536),
        Shape("1024x4096", 1024, 1024, 4096),
        Shape("1024x4096", 2048, 1024, 4096),
    ],
    "cuda": [
        Shape("Llama3-8B", 8192, 4096, 14336),
        Shape("Gemma2-9B", 8192, 3584, 14336, "gelu_tanh"),
        Shape("Qwen2.5-7B", 8192, 3584, 18944),
        Shape("SmolLM2-135M", 8192, 576, 1536),
    ],
}
NO_TOKENS = {
    "cpu": [Shape("Llama3-8B", 0, 4096, 14336)],
    "cuda": [],
}  # also for ops that only move weights, which a CPU can
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.bfloat16, torch.float16]}


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


def cases(device: str, quick: bool = False, op: str | None = None) -> Iterator[Case]:
    """Every case of a kind of device (cpu or cuda), or those of one op. Makes no inputs yet."""
    for name in [op] if op else OPS:
        make_case, has_tokens = OPS[name]
        shapes = QUICK if quick else SHAPES[device]
        if not has_tokens:
            shapes = list(
                dict.fromkeys(
                    [replace(each, num_tokens=0) for each in shapes]
                    + ([] if quick else NO_TOKENS[device])
                )
            )
        for shape in shapes:
            for dtype in DTYPES[device]:
                yield make_case(name, Setting(shape, dtype, device))


def gated_activation_case(
    op: str, setting: Setting, mode: Mode = "fast", every: bool = True
) -> Case:
    """Activation times up with all four statistics, or the squares only. Only fast with all four
    meets every peer.
    """
    activation = setting.shape.activation
    names = STATISTICS if every else STATISTICS[:1]

    def ours(inputs: Tensors) -> Tensors:
        return activate_and_sum(inputs["gate"], inputs["up"], activation, inputs, names, mode=mode)

    def make_inputs() -> Tensors:
        elements = (
            setting.activation_bytes // setting.dtype.itemsize * 3 // 2
        )  # a copy reads and writes each
        copy_from = setting.normal(elements)
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
            activation, setting.device, every, everyone=every and mode == "fast"
        ),
        tolerance=TOLERANCE[setting.dtype],
        num_bytes=3 * setting.activation_bytes,
    )


def match_hf_case(op: str, setting: Setting) -> Case:
    """gated_activation with the roundings of transformers' modules."""
    return gated_activation_case(op, setting, mode="match_hf")


def square_case(op: str, setting: Setting) -> Case:
    """gated_activation with the one statistic that pruning by Eq. 4 of arXiv 2602.04919 needs."""
    return gated_activation_case(op, setting, every=False)


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
    """A whole FFN with all four statistics; the activation is written over the gate, as
    collect_statistics does.
    """
    shape = setting.shape

    def ours(inputs: Tensors) -> Tensors:
        both = peers.input_gemms(inputs)
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
        assert out is not None  # it is for store=False
        return {"out": out, **{name: inputs[name] for name in STATISTICS}}

    def vendor_then_fused(inputs: Tensors) -> Tensors:
        both = peers.input_gemms(inputs)
        return activate_and_sum(
            both["gate"], both["up"], shape.activation, inputs, out=both["gate"]
        )

    def twin(inputs: Tensors) -> Tensors:
        both = peers.input_gemms(inputs)
        return {**both, **twin_activation(both["gate"], both["up"], shape.activation)}

    with_totals = peers.with_totals(torch.float64)
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


def compact_ffn_case(op: str, setting: Setting, planned: bool = False) -> Case:
    """A tenth of the neurons leaves one layer's three matrices, with planning on the host, or
    planned as the peer's indices are.
    """
    kept_1K, order_K, num_moves = plan_removal(setting.shape.width)
    moves = hole_filling(kept_1K, setting.shape.width)
    row_bytes = setting.shape.hidden_size * setting.dtype.itemsize

    def ours(inputs: Tensors) -> Tensors:
        gate, up, down = (inputs[name] for name in peers.WEIGHTS)
        if planned:
            move_rows_([gate], moves)
            move_rows_([up], moves)
            small = {"gate_weight": gate[: len(order_K)], "up_weight": up[: len(order_K)]}
            compact_columns_([down], moves)
            return {**small, "down_weight": down}
        order_LK = compact_ffn_([([gate, up], down)], kept_1K)
        return {"gate_weight": gate, "up_weight": up, "down_weight": down, "order": order_LK[0]}

    def twin(inputs: Tensors) -> Tensors:
        order = inputs["order"]
        small = {name: reference.compact_rows(inputs[name], order) for name in peers.WEIGHTS[:2]}
        return {
            **small,
            "down_weight": reference.compact_columns(inputs["down_weight"], order),
            "order": order,
        }

    return Case(
        op=op,
        setting=setting,
        make_inputs=lambda: {**setting.weights(), "order": order_K.to(setting.device)},
        twin=twin,
        ours=Contender(ours, peers.fresh_copies),
        peers={
            "three x[idx]": Contender(peers.three_indexings, peers.fresh_copies),
            "three index_select": Contender(peers.three_index_selects, peers.fresh_copies),
        },
        tolerance=EXACT,
        num_bytes=2 * 2 * num_moves * row_bytes + 2 * len(order_K) * row_bytes,
    )


def compact_planned_case(op: str, setting: Setting) -> Case:
    """compact_ffn without the planning, which a whole model does once for all layers."""
    return compact_ffn_case(op, setting, planned=True)


def compact_rows_case(op: str, setting: Setting) -> Case:
    """A tenth of the rows leaves one matrix of every layer by one call, as a model's do, with the
    moves planned beforehand.
    """
    shape = setting.shape
    row_bytes = shape.hidden_size * setting.dtype.itemsize
    num_layers = -(-ROWS_BYTES // (shape.width * row_bytes))
    plans = [plan_removal(shape.width) for _ in range(num_layers)]
    kept_LK = torch.cat([kept_1K for kept_1K, _, _ in plans])
    moves, num_kept = hole_filling(kept_LK, shape.width), kept_LK.shape[1]

    def make_inputs() -> Tensors:
        weights_LIH = setting.normal(num_layers, shape.width, shape.hidden_size)
        return {
            "gate_weights": weights_LIH,
            "copy_to": weights_LIH[:, :num_kept].clone(),
            "order": moves.order_LK.to(setting.device),
        }

    def ours(inputs: Tensors) -> Tensors:
        move_rows_(inputs["gate_weights"].unbind(), moves)
        return {"gate_weights": inputs["gate_weights"][:, :num_kept]}

    def copy(inputs: Tensors) -> Tensors:
        # into memory that is there: new pages would take most of the time
        for to_KH, from_IH in zip(
            inputs["copy_to"].unbind(), inputs["gate_weights"].unbind(), strict=True
        ):
            to_KH.copy_(from_IH[:num_kept])
        return {"copy": inputs["copy_to"]}

    def twin(inputs: Tensors) -> Tensors:
        layers = zip(inputs["gate_weights"], inputs["order"], strict=True)
        compacted = torch.stack(
            [reference.compact_rows(weight_IH, order_K) for weight_IH, order_K in layers]
        )
        return {"copy": inputs["gate_weights"][:, :num_kept], "gate_weights": compacted}

    return Case(
        op=op,
        setting=setting,
        make_inputs=make_inputs,
        twin=twin,
        ours=Contender(ours, peers.fresh_copies),
        peers={"copy of the kept number of rows": Contender(copy, peers.fresh_copies)},
        tolerance=EXACT,
        num_bytes=2 * sum(moves.num_moves) * row_bytes,
    )


def plan_removal(width: int) -> tuple[Tensor, Tensor, int]:
    """Random neurons to keep, (1, K); the order in which hole filling leaves them, (K,); and the
    number of rows that move.
    """
    num_kept = width - round(REMOVED * width)
    kept_K = torch.randperm(width)[:num_kept].sort().values
    moves = hole_filling(kept_K[None], width)
    order_K = moves.order_LK[0]
    assert torch.equal(order_K.sort().values, kept_K)
    return kept_K[None], order_K, moves.num_moves[0]


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
    """The twin's activation and statistics, and the mean of |a| that a ModelOpt-style hook takes."""
    out_TI = reference.gated_activation(gate_TI, up_TI, activation)
    statistics = dict(zip(STATISTICS, reference.neuron_sums(out_TI), strict=True))
    return {"out": out_TI, **statistics, "absolute_mean": statistics["absolute"] / len(out_TI)}


# make_case, and whether the op has tokens
OPS: dict[str, tuple[Callable[..., Case], bool]] = {
    "gated_activation": (gated_activation_case, True),
    "gated_activation_square": (square_case, True),
    "gated_activation_match_hf": (match_hf_case, True),
    "gated_activation_backward": (backward_case, True),
    "ffn": (ffn_case, True),
    "dual_gemm": (dual_gemm_case, True),
    "residual_change": (residual_change_case, True),
    "compact_ffn": (compact_ffn_case, False),
    "compact_ffn_planned": (compact_planned_case, False),
    "compact_rows": (compact_rows_case, False),
}

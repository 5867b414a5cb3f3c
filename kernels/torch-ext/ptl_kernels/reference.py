"""Every operation in plain PyTorch, its twin: what tests compare the kernels with, and what runs
where no kernel fits.

Shape suffixes: T tokens, I FFN width, H hidden size, K kept neurons, L layers, M moves.
"""

import torch
from torch import Tensor


def activate(gate: Tensor, activation: str | None) -> Tensor:
    """SiLU (silu), GELU by tanh (gelu_tanh), GELU (gelu), ReLU (relu), its square (relu2), or the
    same tensor (None).
    """
    functional = torch.nn.functional
    if activation == "silu":
        return functional.silu(gate)
    if activation in ("gelu_tanh", "gelu"):
        return functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "relu":
        return functional.relu(gate)
    return functional.relu(gate).square() if activation == "relu2" else gate


def gated_activation(
    gate: Tensor, up: Tensor | None, activation: str | None = "silu", mode: str = "fast"
) -> Tensor:
    """activation(gate) * up, in gate's dtype: rounded once (fast), or after the activation and
    again after the product, as transformers' modules do (match_hf). Without up, activation(gate).
    """
    if up is None:
        wide = gate if mode == "match_hf" or gate.dtype == torch.float64 else gate.float()
        return activate(wide, activation).to(gate.dtype)
    if mode == "match_hf" or gate.dtype == torch.float64:
        return activate(gate, activation) * up
    return (activate(gate.float(), activation) * up.float()).to(gate.dtype)


def neuron_sums(
    activation_TI: Tensor, token_mask_T: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each neuron's sum of squares, sum, sum of |a| and maximum of |a| over the tokens, (I,)
    fp64 each.

    Args:
        activation_TI: input of down_proj, (num_tokens, width), bf16/fp16/fp32/fp64; squared and
            summed in fp64.
        token_mask_T: True for the tokens that count, (num_tokens,) bool; None counts all.
    """
    if token_mask_T is not None:
        activation_TI = activation_TI[token_mask_T]
    value_TI = activation_TI.double()
    magnitude_TI = value_TI.abs()
    largest_I = magnitude_TI.amax(0) if len(value_TI) else value_TI.new_zeros(value_TI.shape[1])
    return value_TI.square().sum(0), value_TI.sum(0), magnitude_TI.sum(0), largest_I


def add_neuron_sums_(
    totals: tuple[Tensor, ...], activation_TI: Tensor, token_mask_T: Tensor | None = None
) -> None:
    """Add ``neuron_sums`` to (), (square,) or (square, sum, absolute, maximum), in place."""
    if len(totals) == 1:
        # The common case, without the other three sums and without an fp64 copy of the activation.
        if token_mask_T is not None:
            activation_TI = activation_TI[token_mask_T]
        wide = activation_TI if activation_TI.dtype == torch.float64 else activation_TI.float()
        totals[0].add_(wide.square().sum(0))
    elif totals:
        *sums, largest = neuron_sums(activation_TI, token_mask_T)
        for total, update in zip(totals[:3], sums, strict=True):
            total.add_(update)
        torch.maximum(totals[3], largest, out=totals[3])


def residual_change(
    before_TH: Tensor, after_TH: Tensor, token_mask_T: Tensor | None = None
) -> Tensor:
    """Return sums over tokens of how a layer changes the residual stream: (3,) fp64.

    out = [sum ||after - before||, sum ||after - before||^2, sum cosine(before, after)]; Eq. 5 of
    arXiv 2602.04919 is the mean of the first, block influence (ShortGPT, arXiv 2403.03853) one
    minus the mean of the third.

    Args:
        before_TH: the layer's input, (num_tokens, hidden_size), bf16/fp16/fp32/fp64; summed in fp32
            (fp64 for fp64).
        after_TH: the layer's output, same shape.
        token_mask_T: True for the tokens that count, (num_tokens,) bool; None counts all.
    """
    if token_mask_T is not None:
        before_TH, after_TH = before_TH[token_mask_T], after_TH[token_mask_T]
    if before_TH.dtype != torch.float64:
        before_TH, after_TH = before_TH.float(), after_TH.float()
    change_T = torch.linalg.vector_norm(after_TH - before_TH, dim=-1).double()
    cosine_T = torch.nn.functional.cosine_similarity(before_TH, after_TH, dim=-1).double()
    return torch.stack([change_T.sum(), change_T.square().sum(), cosine_T.sum()])


def dual_gemm(
    hidden_TH: Tensor,
    gate_weight_IH: Tensor,
    up_weight_IH: Tensor,
    gate_bias_I: Tensor | None = None,
    up_bias_I: Tensor | None = None,
    activation: str | None = "silu",
    mode: str = "fast",
) -> Tensor:
    """activation(hidden @ gate_weight.T + gate_bias) * (hidden @ up_weight.T + up_bias):
    (num_tokens, width).
    """
    gate_TI = torch.nn.functional.linear(hidden_TH, gate_weight_IH, gate_bias_I)
    up_TI = torch.nn.functional.linear(hidden_TH, up_weight_IH, up_bias_I)
    return gated_activation(gate_TI, up_TI, activation, mode)


def hole_filling(kept_LK: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return order_LK, sources_LM, destinations_LM and num_moves_L of ``ptl_kernels.hole_filling``,
    all int64.

    Args:
        kept_LK: indices of the neurons that stay, (num_layers, num_kept) int64 on the CPU, in any
            order.

    Raises:
        ValueError: an index is out of range or comes twice.
    """
    num_layers, num_kept = kept_LK.shape
    try:
        stays_LI = torch.zeros(num_layers, width, dtype=torch.bool).scatter_(1, kept_LK, True)
    except RuntimeError:
        lowest, highest = int(kept_LK.min()), int(kept_LK.max())
        raise ValueError(
            f"kept has indices from {lowest} to {highest}; they must lie in 0..{width - 1}"
        ) from None
    if (stays_LI.sum(1) != num_kept).any():
        raise ValueError("kept has the same index twice in one layer")
    # Holes and kept neurons of the tails come sorted by layer, then by index, and a layer has as
    # many of one as of the other: the i-th of one list belongs to the i-th of the other.
    layer_of_move, destinations = (~stays_LI[:, :num_kept]).nonzero(as_tuple=True)
    sources = stays_LI[:, num_kept:].nonzero(as_tuple=True)[1] + num_kept
    order_LK = torch.arange(num_kept).repeat(num_layers, 1)
    order_LK[layer_of_move, destinations] = sources
    num_moves_L = torch.bincount(layer_of_move, minlength=num_layers)
    # A move's number within its layer: its own number less that of its layer's first one.
    place = torch.arange(len(sources)) - (num_moves_L.cumsum(0) - num_moves_L)[layer_of_move]
    padded_2LM = torch.full((2, num_layers, max(1, min(num_kept, width - num_kept))), -1)
    padded_2LM[:, layer_of_move, place] = torch.stack([sources, destinations])
    return order_LK, padded_2LM[0], padded_2LM[1], num_moves_L


def compact_rows(weight_IH: Tensor, order_K: Tensor) -> Tensor:
    """Return rows (neurons of gate_proj, up_proj or a bias), (K, ...), in this order (int64)."""
    return weight_IH.index_select(0, order_K)


def compact_columns(weight_HI: Tensor, order_K: Tensor) -> Tensor:
    """Return columns (neurons of down_proj), contiguous (H, K), in this order (int64)."""
    return weight_HI.index_select(1, order_K)

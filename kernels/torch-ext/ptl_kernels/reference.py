"""The plain PyTorch twin of every operation: what the kernels are compared with, and the fallback.

Shape suffixes: T tokens, I FFN width, H hidden size, K kept neurons.
"""

import torch
from torch import Tensor


def neuron_square_sums(activation_TI: Tensor, token_mask_T: Tensor | None = None) -> Tensor:
    """Return each neuron's sum of squares over the tokens, (I,) fp64.

    out[i] = sum_t mask[t] * activation[t, i] ** 2, squared in fp32 (Eq. 4 of arXiv 2602.04919 is its square root).

    Args:
        activation_TI: input of down_proj, (num_tokens, width), bf16/fp16/fp32.
        token_mask_T: True for the tokens that count, (num_tokens,) bool; None counts all.
    """
    if token_mask_T is not None:
        activation_TI = activation_TI[token_mask_T]
    return activation_TI.float().square().sum(0).double()


def residual_change(before_TH: Tensor, after_TH: Tensor, token_mask_T: Tensor | None = None) -> Tensor:
    """Return sums over tokens of how a layer changes the residual stream: (3,) fp64.

    out = [sum ||after - before||, sum ||after - before||^2, sum cosine(before, after)]; Eq. 5 of arXiv 2602.04919 is the mean of
    the first, block influence (ShortGPT, arXiv 2403.03853) one minus the mean of the third.

    Args:
        before_TH: the layer's input, (num_tokens, hidden_size), bf16/fp16/fp32.
        after_TH: the layer's output, same shape.
        token_mask_T: True for the tokens that count, (num_tokens,) bool; None counts all.
    """
    if token_mask_T is not None:
        before_TH, after_TH = before_TH[token_mask_T], after_TH[token_mask_T]
    before_TH, after_TH = before_TH.float(), after_TH.float()
    change_T = torch.linalg.vector_norm(after_TH - before_TH, dim=-1).double()
    cosine_T = torch.nn.functional.cosine_similarity(before_TH, after_TH, dim=-1).double()
    return torch.stack([change_T.sum(), change_T.square().sum(), cosine_T.sum()])


def compact_rows(weight_IH: Tensor, kept_K: Tensor) -> Tensor:
    """Return the kept rows (neurons of gate_proj, up_proj or a bias), (K, ...), in the order of ``kept_K`` (int64)."""
    return weight_IH.index_select(0, kept_K)


def compact_columns(weight_HI: Tensor, kept_K: Tensor) -> Tensor:
    """Return the kept columns (neurons of down_proj), contiguous (H, K), in the order of ``kept_K`` (int64)."""
    return weight_HI.index_select(1, kept_K)

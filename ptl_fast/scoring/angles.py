"""How far decoder layers turn the residual stream, token by token."""

import torch
from torch import Tensor, nn

from ptl_fast.scoring.gradients import wide


@torch.no_grad()
def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """Return arccos(cosine(before, after)) / pi of each token, in [0, 1]: arXiv 2403.17887.

    Computed as 2 atan2(||u - v||, ||u + v||) / pi of the unit vectors u and v: arccos loses half of
    the digits near a cosine of one.

    Args:
        before: a layer's input, (..., hidden_size); computed in fp64 if it is fp64, else in fp32.
        after: the layer's output, same shape.

    Returns:
        (...), fp64 or fp32.
    """
    unit_before, unit_after = (
        nn.functional.normalize(wide(tensor), dim=-1) for tensor in (before, after)
    )
    apart, together = (
        (unit_before - unit_after).norm(dim=-1),
        (unit_before + unit_after).norm(dim=-1),
    )
    return 2 / torch.pi * torch.atan2(apart, together)


def add_angles(before: Tensor, after: Tensor, total: Tensor, token_mask: Tensor | None) -> None:
    """Add the angular distances of the unmasked tokens to ``total``, () fp64, in place."""
    # inside a backward pass, gradient checkpointing repeats a forward pass that is already counted
    if torch._C._current_graph_task_id() != -1:
        return
    angle_T = angular_distance(before, after).flatten()
    if token_mask is not None:
        angle_T = angle_T.masked_fill(~token_mask.flatten(), 0.0)
    total += angle_T.double().sum()

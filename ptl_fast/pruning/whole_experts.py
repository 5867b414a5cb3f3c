"""Remove whole experts from a model: their tensors, and their rows of the router.

What stays computes what the original does when the router's logits of the others are minus
infinity: no token can go to them.
"""

from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptl_fast.model.families import Family
from ptl_fast.model.routing import find_routed
from ptl_fast.pruning.experts import become_, selected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


def drop_experts_(
    model: "PreTrainedModel",
    family: Family,
    kept_experts: "Sequence[Sequence[int]]",
    state_of: dict[Tensor, dict[str, Tensor]],
) -> None:
    """Remove all experts but the kept ones, in place, from weights and optimizer state.

    Their order stays, and with it the groups that a router chooses from. The model's config is the
    caller's to change, and then the sizes that modules record (``experts.record_sizes``).

    Args:
        kept_experts: of each layer with experts, the indices of those that stay, ascending.
        state_of: Adam's state by parameter.
    """
    for routed, kept in zip(find_routed(model, family.layers), kept_experts, strict=True):
        kept_K = torch.tensor(kept)
        for name, dim in routed.tensors.items():
            become_(attrgetter(name)(model), selected(kept_K, dim), state_of)

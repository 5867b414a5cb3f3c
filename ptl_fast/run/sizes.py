"""The model's size after a round (parameters, layers, width, FLOPs), from configs alone."""

from typing import TYPE_CHECKING, Protocol

from ptl_fast.model import flops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig


class Size(Protocol):
    """The sizes that a round changes: a Round of the schedule, or a PruningPlan."""

    @property
    def width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_experts(self) -> int | None: ...
    @property
    def hidden_size(self) -> int | None: ...
    @property
    def down_bias(self) -> bool: ...


def config_after(
    original: "PretrainedConfig", size: Size | None, kept_layers: "Sequence[int] | None" = None
) -> "PretrainedConfig":
    """The config of the model after a round; the original's if ``size`` is None.

    Args:
        kept_layers: the original's layers that stay; None: the first ones, where all are alike.
    """
    if size is None:
        return original
    if size.hidden_size is not None:
        # imported here, because it imports torch, which a dry run can mostly do without
        from ptl_fast.baselines.slicegpt import sliced_config

        original = sliced_config(original, size.hidden_size)
    kept = range(size.num_layers) if kept_layers is None else kept_layers
    smaller = flops.resized(original, size.width, kept, size.num_experts)
    if size.down_bias:
        smaller.down_bias = True
    return smaller


def predicted_size(
    original: "PretrainedConfig",
    size: Size | None,
    sequence_length: int,
    kept_layers: "Sequence[int] | None" = None,
) -> dict[str, int]:
    """The size of the model after a round; of the original if ``size`` is None.

    Args:
        kept_layers: as for ``config_after``.

    Returns:
        num_parameters, num_layers, width (of the FFN), num_experts (where there are some) and
        flops_per_token, those of a forward pass over a sequence of ``sequence_length`` tokens.
    """
    # under a causal mask, a token attends on average to half of a full sequence
    return flops.model_size(config_after(original, size, kept_layers), sequence_length // 2)

"""How large the model is after a round, from the original's config alone."""

from typing import TYPE_CHECKING, Protocol

from ptl_fast.model import flops

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Size(Protocol):
    """A round of the schedule, or the plan of one."""

    @property
    def width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int | None: ...


def config_after(original: "PretrainedConfig", size: Size | None) -> "PretrainedConfig":
    """The config of the model that a round leaves; None is the original."""
    if size is None:
        return original
    if size.hidden_size is not None:
        from ptl_fast.baselines.slicegpt import sliced_config  # imports torch

        original = sliced_config(original, size.hidden_size)
    return flops.resized(original, size.width, size.num_layers)


def predicted_size(
    original: "PretrainedConfig", size: Size | None, sequence_length: int
) -> dict[str, int]:
    """num_parameters, num_layers, width and flops_per_token of the model that a round leaves."""
    # a token of a full sequence sees, on average, half of it
    return flops.model_size(config_after(original, size), sequence_length // 2)

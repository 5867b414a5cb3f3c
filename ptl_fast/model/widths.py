"""Where a config holds the FFN's width.

A config is transformers' or any object with the same fields. Most have it in ``intermediate_size``;
a model type that does not gets one row in WIDTHS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _lfm2(config: Any) -> int:
    """LFM2's width: with block_auto_adjust_ff_dim, two thirds, scaled and rounded up."""
    width = config.intermediate_size
    if not config.block_auto_adjust_ff_dim:
        return width
    width = int(2 * width / 3)
    if config.block_ffn_dim_multiplier is not None:
        width = int(config.block_ffn_dim_multiplier * width)
    multiple = config.block_multiple_of
    return multiple * -(-width // multiple)


@dataclass(frozen=True, kw_only=True)
class Width:
    """How a config says the FFN's width."""

    name: str | None = "intermediate_size"
    """The field; None: the model's code decides, and no field can say another width."""
    of_hidden: int = 0
    """The width where the field is None, in hidden sizes."""
    parts: int = 1
    """The field holds this multiple of the width."""
    read: Callable[[Any], int] | None = None
    """Computes the width where the field alone does not tell it."""
    also: Mapping[str, Any] = field(default_factory=dict)
    """Fields that must have these values for the field to be the width."""


FIXED = Width(name=None)
OF_HIDDEN = Width(name="n_inner", of_hidden=4)
FFN_DIM = Width(name="ffn_dim")
SHARED = Width(name="shared_intermediate_size")
WIDTHS = {
    "bloom": FIXED,
    "codegen": OF_HIDDEN,
    "falcon": Width(name="ffn_hidden_size", of_hidden=4),
    "gpt2": OF_HIDDEN,
    "gpt_bigcode": OF_HIDDEN,
    "gpt_neo": Width(of_hidden=4),
    "gpt_neox_japanese": FIXED,
    "gptj": OF_HIDDEN,
    "granitemoehybrid": SHARED,
    "granitemoeshared": SHARED,
    "lfm2": Width(read=_lfm2, also={"block_auto_adjust_ff_dim": False}),
    "moshi": Width(name="ffn_dim", parts=2),
    "mpt": FIXED,
    "openai-gpt": FIXED,
    "opt": FFN_DIM,
    "recurrent_gemma": Width(parts=2),
    "xglm": FFN_DIM,
}


def ffn_width(config: "PretrainedConfig") -> int:
    """The width of the FFNs, as the config says it; 0 where it says none, or not one for all."""
    place = _place(config)
    if place.name is None:
        return 0
    if place.read is not None:
        return place.read(config)
    value = getattr(config, place.name, None)
    if value is None and place.of_hidden:
        return place.of_hidden * config.hidden_size
    return value // place.parts if isinstance(value, int) else 0


def _place(config: "PretrainedConfig") -> Width:
    return WIDTHS.get(getattr(config, "model_type", ""), Width())


def set_width(config: "PretrainedConfig", width: int) -> None:
    """Change the FFN's width in a config, in place."""
    place = _place(config)
    assert place.name is not None, "such a model's neurons are not removed"
    setattr(config, place.name, width * place.parts)
    for name, value in place.also.items():
        setattr(config, name, value)

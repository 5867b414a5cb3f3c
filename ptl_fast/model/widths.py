"""Where a config holds the FFN's width, and the number of experts.

A config is transformers' or any object with the same fields. Most have the width in
``intermediate_size``; a model type that does not gets one row in WIDTHS. The width of a mixture of
experts is that of one of its routed experts.
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


# What configs call the number of routed experts of a layer, and of those that a token goes to.
NUM_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers")
ACTIVE_EXPERTS = ("num_experts_per_tok", "moe_topk", "moe_k")
EXPERT = Width(name="moe_intermediate_size")
PLAIN = Width()

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


def num_experts(config: "PretrainedConfig") -> int:
    """The number of routed experts that each mixture of experts has; 0 if no layer has one."""
    field_name = experts_field(config)
    if field_name is None or not _has_sparse_layer(config):
        return 0
    return getattr(config, field_name) or 0


def tokens_per_ffn(config: "PretrainedConfig", num_tokens: int) -> int:
    """How many of so many tokens an FFN sees: of an expert, if the router spreads them evenly."""
    number = num_experts(config)
    return num_tokens * num_active_experts(config) // number if number else num_tokens


def experts_field(config: "PretrainedConfig") -> str | None:
    """The field with the number of routed experts; None: the config has none."""
    return next((name for name in NUM_EXPERTS if _declares(config, name)), None)


def num_active_experts(config: "PretrainedConfig") -> int:
    """The number of routed experts that a token goes to."""
    found = (getattr(config, name, None) for name in ACTIVE_EXPERTS if _declares(config, name))
    return next((value for value in found if isinstance(value, int)), 1)


@dataclass(frozen=True, kw_only=True)
class ExpertLimits:
    """How many routed experts a mixture has, and how many it can do without."""

    number: int
    """Routed experts of a layer; 0: the model has none."""
    active: int
    """Those that a token goes to."""
    groups: int
    """The router chooses groups first; all have equally many experts. 1: there are none."""
    fewest: int
    """The fewest experts with which it can choose so many."""


def expert_limits(config: "PretrainedConfig") -> ExpertLimits:
    """How many experts can go, so that a token still goes to as many as before."""
    active = num_active_experts(config)
    found = getattr(config, "n_group", None) if _declares(config, "n_group") else None
    groups = found or 1
    # the chosen groups must have enough between them
    each = -(-active // (getattr(config, "topk_group", None) or 1)) if groups > 1 else active
    # and a group is chosen by the sum of its two highest
    least = groups * max(each, 2 if found else 1)
    return ExpertLimits(number=num_experts(config), active=active, groups=groups, fewest=least)


def set_num_experts(config: "PretrainedConfig", number: int) -> None:
    """Change the number of routed experts in a config, in place."""
    name = experts_field(config)
    assert name is not None, "such a model has no experts"
    before = getattr(config, name)
    # some types take the number from a field of another's name too, if config.json has it
    also = [each for each in NUM_EXPERTS if vars(config).get(each) == before]
    for each in (name, *also):
        setattr(config, each, number)


def _has_sparse_layer(config: Any) -> bool:
    """Whether a layer has experts: types that have some can be dense throughout."""
    number = config.num_hidden_layers
    if getattr(config, "is_moe", True) is False:  # Doge
        return False
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds and _declares(config, "mlp_layer_types"):
        return any(kind != "dense" for kind in kinds)
    first = max(getattr(config, name, None) or 0 for name in FIRST_DENSE)
    dense = {*range(first), *(getattr(config, "mlp_only_layers", None) or ())}
    return not dense.issuperset(range(number))


def _declares(config: Any, name: str) -> bool:
    """Whether the config's class has the field: an unknown one in config.json means nothing."""
    return any(name in vars(each).get("__annotations__", {}) for each in type(config).__mro__)


def _place(config: "PretrainedConfig") -> Width:
    if num_experts(config):
        return EXPERT if _declares(config, "moe_intermediate_size") else PLAIN
    return WIDTHS.get(getattr(config, "model_type", ""), PLAIN)


def set_width(config: "PretrainedConfig", width: int) -> None:
    """Change the FFN's width in a config, in place."""
    place = _place(config)
    assert place.name is not None, "such a model's neurons are not removed"
    setattr(config, place.name, width * place.parts)
    for name, value in place.also.items():
        setattr(config, name, value)

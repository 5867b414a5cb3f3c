"""Whether a model can be pruned, and if not, why and what helps; from its config alone.

CHECKS is a plain table: each row finds one thing that cannot be pruned, and says what to do about
it. A row goes once its thing is supported. Which layers may go is not asked here but where their
numbers are known (``run.layer_choice``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ptl_fast.base.console import reason
from ptl_fast.model import layers, parts
from ptl_fast.model.families import Family, find_family, find_layers
from ptl_fast.model.widths import expert_limits, num_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class Skeleton:
    """A model without weights, built from its config; everything is made when asked."""

    def __init__(self, config: "PretrainedConfig") -> None:
        self.config = config

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model; raises what its class raises for a config that is wrong."""
        return layers.on_meta(self.config)

    @cached_property
    def family(self) -> Family:
        """Where its layers are, which must be there, and its FFNs."""
        return find_family(self.model, needs_neurons=False)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a model may have and that cannot be pruned."""

    find: Callable[[Skeleton], str | None]
    """What of the model shows it, in words; None if it is not there."""
    remedy: str
    """What to do about it."""
    of_neurons: bool = False
    """Whether it rules out the removal of neurons alone."""
    of_experts: bool = False
    """Whether it rules out the removal of whole experts alone."""


def check_support(
    config: "PretrainedConfig", name: str, *, needs_neurons: bool, drops_experts: bool = False
) -> None:
    """Check that a model can lose what the settings ask for.

    Args:
        config: the model's.
        name: the model's, for the error.
        needs_neurons: whether single neurons shall go, or dimensions of the FFNs.
        drops_experts: whether whole experts shall go.

    Raises:
        ValueError: it cannot; says what stands in the way, and what helps.
    """
    look = Skeleton(parts.decoder_config(config))
    for check in CHECKS:
        asked = (needs_neurons or not check.of_neurons) and (drops_experts or not check.of_experts)
        reason = check.find(look) if asked else None
        if reason is None:
            continue
        remedy = check.remedy
        if check.of_neurons and _can_lose_layers(look):
            remedy += "; its layers can go (--keep 1 --drop-layers N)"
        raise ValueError(
            f"--model {name} (model_type {config.model_type}) is not supported: {reason}; {remedy}"
        )


def _has_encoder(look: Skeleton) -> str | None:
    return "it is an encoder with a decoder" if look.config.is_encoder_decoder else None


def _is_wrapper(look: Skeleton) -> str | None:
    reason = parts.why_not(look.config)
    return reason and f"it is a model of several parts, and cannot be compressed whole: {reason}"


def _is_no_language_model(look: Skeleton) -> str | None:
    from transformers import AutoModelForCausalLM

    if type(look.config) in AutoModelForCausalLM._model_mapping:
        return None
    return "transformers has no causal language model of this type"


def _lacks_sizes(look: Skeleton) -> str | None:
    """Sizes that are no single number."""
    wanted = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    missing = [each for each in wanted if not isinstance(getattr(look.config, each, None), int)]
    return f"its config has no single number for {', '.join(missing)}" if missing else None


def _cannot_be_built(look: Skeleton) -> str | None:
    try:
        look.model  # noqa: B018  built at the first access
    except Exception as error:  # model classes raise many types for a config that is wrong
        return f"transformers cannot build it from its config.json: {reason(error)}"
    return None


def _cannot_route(look: Skeleton) -> str | None:
    """Numbers of experts with which its router fails at the first token."""
    limits, chosen = expert_limits(look.config), getattr(look.config, "topk_group", None) or 0
    if not limits.number:
        return None
    if limits.active > limits.number:
        return f"its config sends a token to {limits.active} of {limits.number} experts"
    if limits.number % limits.groups:
        return f"its config has {limits.number} experts in {limits.groups} groups"
    if limits.groups > 1 and chosen > limits.groups:
        return f"its config has a router choose {chosen} of {limits.groups} groups of experts"
    return None


def _has_no_layers(look: Skeleton) -> str | None:
    return find_layers(look.model)[1]


def _has_no_ffns(look: Skeleton) -> str | None:
    reason = look.family.no_ffn
    return None if reason is None else f"neurons cannot be removed: {reason}"


def _has_no_experts(look: Skeleton) -> str | None:
    return None if num_experts(look.config) else "it has no experts (--keep-experts)"


def _keeps_experts(look: Skeleton) -> str | None:
    from ptl_fast.model.routing import find_routed

    reason = look.family.no_ffn
    if reason is None:
        try:
            find_routed(look.model, look.family.layers)
        except ValueError as error:
            reason = str(error)
    return None if reason is None else f"whole experts cannot be removed: {reason}"


def _can_lose_layers(look: Skeleton) -> bool:
    """Whether at least the first or the last layer can go."""
    number = look.config.num_hidden_layers
    return number > 1 and any(
        layers.why_not_without(look.config, look.family.layers, kept, look.model) is None
        for kept in (range(1, number), range(number - 1))
    )


CHECKS = (
    Check(find=_has_encoder, remedy="give a model that is a decoder alone"),
    Check(
        find=_is_wrapper,
        remedy="take out the text decoder first, as docs/checkpoints.md shows, and give that one",
    ),
    Check(
        find=_is_no_language_model,
        remedy="give a model that AutoModelForCausalLM loads without trust_remote_code",
    ),
    Check(find=_lacks_sizes, remedy="give a model whose config has them"),
    Check(find=_cannot_be_built, remedy="mend config.json, or copy the model again"),
    Check(
        find=_cannot_route,
        remedy="correct the numbers of experts in config.json, or copy the model again",
    ),
    Check(find=_has_no_layers, remedy="give a decoder with one list of layers"),
    Check(
        find=_has_no_ffns,
        remedy="docs/models.md lists the types whose neurons can go",
        of_neurons=True,
    ),
    Check(find=_has_no_experts, remedy="leave --keep-experts out", of_experts=True),
    Check(
        find=_keeps_experts,
        remedy="docs/models.md lists the types whose experts can go",
        of_experts=True,
    ),
)

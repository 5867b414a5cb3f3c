"""Count a model's parameters and forward FLOPs exactly, from its config alone.

No weights are read, and for the families in EXTRAS torch is not imported. A multiplication and an
addition are two FLOPs. Counted are the matrix products with weights and attention's two (queries
with keys, probabilities with values); norms, activations, softmax and embedding lookups are not. A
config is transformers' or any object with the same fields.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ptl_fast.model import parts
from ptl_fast.model.families import layers_path, resize_config
from ptl_fast.model.layers import on_meta
from ptl_fast.model.widths import ffn_width, num_active_experts, num_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Parameters of a decoder layer that its config does not tell: norms, and a fixed bias."""

    hidden_norms: int = 2
    """Number of norms over the hidden size."""
    head_norms: int = 0
    """Number of norms over one head's size, such as those of queries and keys."""
    qkv_bias: bool = False
    """Whether the query, key and value projections always have a bias."""


EXTRAS = {
    "llama": Extras(),
    "mistral": Extras(),
    "phi3": Extras(),
    "qwen2": Extras(qkv_bias=True),
    "qwen3": Extras(head_norms=2),
    "gemma2": Extras(hidden_norms=4),
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Numbers of elements of a model's weights."""

    decoder: int
    """The weight matrices of all linear layers but the language-model head."""
    head: int
    """The language-model head, also where it is tied to the embedding."""
    num_parameters: int
    """All parameters; tied weights count once, and those of a vision tower too."""


def count_weights(config: "PretrainedConfig") -> Weights:
    """Count a model's weights.

    By formula for the families in EXTRAS; any other model is built on torch's meta device, which
    allocates no memory, and its parameters counted. What a model has beside its text decoder, such
    as a vision tower, counts as parameters and does nothing for a token of text.
    """
    weights = _count_decoder(config)
    beside = parts.parameters_beside(config) or 0
    return replace(weights, num_parameters=weights.num_parameters + beside)


def _count_decoder(config: "PretrainedConfig") -> Weights:
    """The same of a text decoder, or of a model that is one."""
    extras = EXTRAS.get(config.model_type)
    if extras is None:
        return _count_in_model(config)
    hidden, width, num_layers = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    )
    query, key_value = attention_widths(config)
    # query and output, key and value, gate and up and down
    layer = 2 * hidden * query + 2 * hidden * key_value + 3 * hidden * width
    others = extras.hidden_norms * hidden + extras.head_norms * head_dim(config)
    if extras.qkv_bias:
        others += query + 2 * key_value
    if getattr(config, "attention_bias", False):
        others += query + 2 * key_value + hidden
    if getattr(config, "mlp_bias", False):
        others += 2 * width + hidden
    elif getattr(config, "down_bias", False):
        # FLAP's, which no config of transformers has (ptl_fast.baselines.flap)
        others += hidden
    # the last ``hidden`` below is the norm after the last layer
    head = config.vocab_size * hidden
    embeddings = head if config.tie_word_embeddings else 2 * head
    return Weights(
        decoder=num_layers * layer,
        head=head,
        num_parameters=num_layers * (layer + others) + embeddings + hidden,
    )


def head_dim(config: "PretrainedConfig") -> int:
    """The size of one attention head."""
    # some configs have no such field, or None in it
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def attention_widths(config: "PretrainedConfig") -> tuple[int, int]:
    """(query width, key width) over all heads; values are as wide as keys."""
    # without the field: multi-head attention, with as many key heads as query heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_attention_heads * head_dim(config), num_kv_heads * head_dim(config)


def flops_per_token(
    config: "PretrainedConfig", context_length: float, *, lm_head: bool = True
) -> int:
    """Forward FLOPs of one token that attends to ``context_length`` tokens, itself included.

    2 FLOPs per element of a weight matrix, and 4 * num_heads * head_dim * context_length per layer
    for attention. ``lm_head`` says whether the token's logits are computed.
    """
    weights = count_weights(config)
    attention = 4 * attention_widths(config)[0] * context_length * config.num_hidden_layers
    return round(2 * (weights.decoder + lm_head * weights.head) + attention)


def flops_per_sample(
    config: "PretrainedConfig", num_tokens: int, *, causal: bool = False, lm_head: bool = True
) -> int:
    """Forward FLOPs of one sequence of ``num_tokens`` tokens.

    Args:
        causal: count attention's lower triangle only, which is all that flash-attention computes.
            False counts the full square, as eager attention computes it and torch's
            FlopCounterMode and calflops count it. A sliding window is not subtracted either way.
        lm_head: False leaves out the language-model head, as in the prefill of a generation, which
            needs the last token's logits only.
    """
    # over a causal sequence a token attends to (num_tokens + 1) / 2 tokens on average
    context_length = (num_tokens + 1) / 2 if causal else num_tokens
    return num_tokens * flops_per_token(config, context_length, lm_head=lm_head)


def model_size(config: "PretrainedConfig", context_length: int) -> dict[str, int]:
    """Return {num_parameters, num_layers, width, flops_per_token}, with the language-model head;
    of a mixture of experts, num_experts too, those of a layer that the router chooses from.
    """
    number = num_experts(config)
    return {
        "num_parameters": count_weights(config).num_parameters,
        "num_layers": config.num_hidden_layers,
        "width": ffn_width(config),
        **({"num_experts": number} if number else {}),
        "flops_per_token": flops_per_token(config, context_length),
    }


def resized(
    config: "PretrainedConfig",
    width: int,
    layers: int | Sequence[int],
    experts: int | None = None,
) -> "PretrainedConfig":
    """A copy of the config with another size, for counting.

    Args:
        width: of its FFNs.
        layers: those that stay; or how many do, where all are of one size.
        experts: how many of them stay; None: all.
    """
    smaller = copy.deepcopy(config)
    kept = list(range(layers) if isinstance(layers, int) else layers)
    resize_config(smaller, width, kept, experts)
    return smaller


def layer_sizes(config: "PretrainedConfig") -> list[int]:
    """The number of parameters of each decoder layer, counted in the model on the meta device."""
    model = on_meta(config)
    layers = attrgetter(layers_path(model))(model)
    return [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]


def _active_in_experts(model: Any, config: "PretrainedConfig") -> int:
    """The elements of the weight matrices that one token meets in mixtures of experts: of the
    experts that it goes to, and of the routers, whose weights are no linear layers'.
    """
    number = num_experts(config)
    if not number:
        return 0
    routers = stacked = 0
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if parameter.dim() == 3:
            stacked += parameter.numel()
        elif own == "weight" and parameter.dim() == 2 and len(parameter) == number:
            routers += parameter.numel() if _is_router(model.get_submodule(path)) else 0
    return stacked * num_active_experts(config) // number + routers


def _is_router(module: Any) -> bool:
    from torch import nn

    return not isinstance(module, nn.Linear | nn.Embedding)


def _count_in_model(config: "PretrainedConfig") -> Weights:
    """Build the model on the meta device and count its parameters."""
    from torch import nn

    model: Any = on_meta(config)
    head = model.get_output_embeddings().weight.numel()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        # transformers' Conv1D (GPT-2) is a linear layer too
        if isinstance(module, nn.Linear) or hasattr(module, "nx")
    )
    return Weights(
        decoder=linear - head + _active_in_experts(model, config),
        head=head,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )

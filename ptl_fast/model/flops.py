"""Parameters and forward FLOPs of a model, counted exactly from its config alone: no weights, and
for known families no torch.

One multiply and one add are two operations. Counted are the products with weights and attention's
two products; norms, activations, softmax and the embedding's look-up are left out. A config is a
transformers one, or any object with its fields.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptl_fast.model.families import resize_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What one decoder layer holds besides its linear layers' weights and the biases that its
    config announces.
    """

    hidden_norms: int = 2
    """Norms over the hidden size."""
    head_norms: int = 0
    """Norms over one attention head."""
    qkv_bias: bool = False


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
    """Elements of the linear layers' weight matrices, and of everything."""

    decoder: int
    head: int
    """The language-model head, also where it shares the embedding's weights."""
    num_parameters: int


def count_weights(config: "PretrainedConfig") -> Weights:
    """Count by formula for the families in EXTRAS; build any other model without memory (torch's
    meta device) and look.
    """
    extras = EXTRAS.get(config.model_type)
    if extras is None:
        return _count_in_model(config)
    hidden, width, num_layers = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    )
    query, key_value = attention_widths(config)
    layer = 2 * hidden * query + 2 * hidden * key_value + 3 * hidden * width
    others = extras.hidden_norms * hidden + extras.head_norms * head_dim(config)
    if extras.qkv_bias:
        others += query + 2 * key_value
    if getattr(config, "attention_bias", False):
        others += query + 2 * key_value + hidden
    if getattr(config, "mlp_bias", False):
        others += 2 * width + hidden
    head = config.vocab_size * hidden
    embeddings = head if config.tie_word_embeddings else 2 * head
    return Weights(
        decoder=num_layers * layer,
        head=head,
        num_parameters=num_layers * (layer + others) + embeddings + hidden,
    )


def head_dim(config: "PretrainedConfig") -> int:
    """The width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def attention_widths(config: "PretrainedConfig") -> tuple[int, int]:
    """(width of the queries, width of the keys, which is also the values')."""
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_attention_heads * head_dim(config), num_kv_heads * head_dim(config)


def flops_per_token(
    config: "PretrainedConfig", context_length: float, *, lm_head: bool = True
) -> int:
    """Forward FLOPs of one token that attends to ``context_length`` tokens, itself included.

    Two operations for each element of a weight matrix, and 4 * num_heads * head_dim *
    context_length a layer for attention."""
    weights = count_weights(config)
    attention = 4 * attention_widths(config)[0] * context_length * config.num_hidden_layers
    return round(2 * (weights.decoder + lm_head * weights.head) + attention)


def flops_per_sample(
    config: "PretrainedConfig", num_tokens: int, *, causal: bool = False, lm_head: bool = True
) -> int:
    """Forward FLOPs of one sequence of ``num_tokens`` tokens.

    Attention counts as the full square, as eager modules compute it and torch's FlopCounterMode and
    calflops count it; with ``causal`` as its lower triangle, which is all that flash-attention
    computes. A sliding window is not subtracted. Without ``lm_head``: reading a prompt for
    generation, which needs the logits of the last token only.
    """
    context_length = (num_tokens + 1) / 2 if causal else num_tokens
    return num_tokens * flops_per_token(config, context_length, lm_head=lm_head)


def model_size(config: "PretrainedConfig", context_length: int) -> dict[str, int]:
    """Return {num_parameters, num_layers, width, flops_per_token}; ``flops_per_token`` as above,
    with the language-model head.
    """
    return {
        "num_parameters": count_weights(config).num_parameters,
        "num_layers": config.num_hidden_layers,
        "width": config.intermediate_size,
        "flops_per_token": flops_per_token(config, context_length),
    }


def resized(config: "PretrainedConfig", width: int, num_layers: int) -> "PretrainedConfig":
    """A copy of the config with another FFN width and number of layers. Which layers go does not
    change any count.
    """
    smaller = copy.deepcopy(config)
    resize_config(smaller, width, list(range(num_layers)))
    return smaller


def _count_in_model(config: "PretrainedConfig") -> Weights:
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight.numel()
    linear = sum(
        module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear)
    )
    return Weights(
        decoder=linear - head,
        head=head,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )

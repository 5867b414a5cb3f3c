"""Parameters and forward FLOPs of a model, counted exactly from its config alone: no weights are needed."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from ptl_fast.families import resize_config
from ptl_fast.slicegpt import sliced_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def model_size(config: "PretrainedConfig", context_length: int) -> dict[str, int]:
    """Return {num_parameters, num_layers, width, flops_per_token}.

    ``flops_per_token`` is the forward pass of one token whose attention sees ``context_length`` tokens: two operations for each
    weight of a linear layer (the language-model head included, also where it shares the embedding's weights), and
    4 * num_heads * head_dim * context_length a layer for attention's two products. Norms, activations and softmax are left out.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * config.num_attention_heads * head_dim * context_length * config.num_hidden_layers
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_layers": config.num_hidden_layers,
        "width": config.intermediate_size,
        "flops_per_token": 2 * linear + attention,
    }


def predicted_size(
    config: "PretrainedConfig", width: int, num_layers: int, context_length: int, sliced_hidden_size: int | None = None
) -> dict[str, int]:
    """``model_size`` of the model that a round will leave. Which layers go does not change the count."""
    smaller = copy.deepcopy(config) if sliced_hidden_size is None else sliced_config(config, sliced_hidden_size)
    resize_config(smaller, width, list(range(num_layers)))
    return model_size(smaller, context_length)

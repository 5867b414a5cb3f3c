"""Small configs of any model type that transformers has, for what needs no weights."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

SIZES: dict[str, Any] = {
    "vocab_size": 306,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def tiny_config(model_type: str, **others: object) -> PretrainedConfig:
    """A config with 4 layers of hidden size 64."""
    return AutoConfig.for_model(model_type, **SIZES | others)

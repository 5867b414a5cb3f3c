"""Tiny random models of every tested family, and the bundled model's folder."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DEMO_MODEL = Path(__file__).parents[2] / "ptl_fast" / "demo" / "model"
FAMILIES = ["llama", "qwen2", "gemma2", "mistral", "qwen3", "phi3"]
NUM_LAYERS, WIDTH, HIDDEN = 5, 48, 32


def make_model(family: str, **overrides: object) -> PreTrainedModel:
    """A random float32 model with 5 layers; biases are random too, where the family has them."""
    settings = {
        "vocab_size": 384,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    if family in ("gemma2", "mistral"):
        settings["sliding_window"] = 8
    if family == "gemma2":
        settings["query_pre_attn_scalar"] = 8
    config = AutoConfig.for_model(family, **{**settings, **overrides})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model

"""Tiny random models of several parts: a text decoder with a vision tower, and what they read."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

IMAGE = 300
TEXT: dict[str, Any] = {
    "vocab_size": 310,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    # as many as the decoder has layers: two lists of one length
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Of Qwen's vision towers.
QWEN_TOWER: dict[str, Any] = {
    "depth": 5,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
QWEN_TOKENS = {"video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}
GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# Positions in time, height and width.
THREE_KINDS = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
# {type: (settings of the text decoder, of the vision tower, of the whole)}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({}, TOWER, {"mm_tokens_per_image": 4}),
    "mistral3": (
        {"model_type": "mistral"},
        {**TOWER, "model_type": "pixtral", "head_dim": 16},
        {"spatial_merge_size": 1},
    ),
    "qwen3_5": (GATED_DELTA, QWEN_TOWER, QWEN_TOKENS),
    "qwen2_5_vl": ({"rope_parameters": THREE_KINDS}, QWEN_TOWER, QWEN_TOKENS),
    "llava": ({"model_type": "llama"}, {**TOWER, "model_type": "clip_vision_model"}, {}),
    "cohere2_vision": ({"model_type": "cohere2"}, TOWER, {}),
    "paligemma": ({"model_type": "gemma"}, TOWER, {"projection_dim": 32}),
}


def whole_config(model_type: str, **text: object) -> PretrainedConfig:
    """The config of a tiny model of several parts, with other settings of its text decoder."""
    of_text, of_tower, of_whole = SETTINGS[model_type]
    return AutoConfig.for_model(
        model_type,
        text_config={**TEXT, **of_text, **text},
        vision_config=of_tower,
        image_token_id=IMAGE,
        **of_whole,
    )


def make_whole(model_type: str, **text: object) -> Any:
    """A random float32 model of this config."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(whole_config(model_type, **text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def with_image(model_type: str) -> dict[str, torch.Tensor]:
    """What the model of a type takes for a text with an image of 28 x 28 pixels in it."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    tokens = 1 if SETTINGS[model_type][1] is QWEN_TOWER else 4  # which merges 2 x 2 patches
    image = [IMAGE] * tokens
    ids = torch.tensor([[7, 8, 9, *image, 10, 11, 12, 13, 14]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if SETTINGS[model_type][1] is QWEN_TOWER:
        # a row for each of the four patches, of two frames
        patches = torch.randn(4, 3 * 2 * 14 * 14, generator=generator)
        grid = torch.tensor([[1, 2, 2]])
        types = (ids == IMAGE).long()
        return {
            **inputs,
            "pixel_values": patches,
            "image_grid_thw": grid,
            "mm_token_type_ids": types,
        }
    if model_type == "mistral3":
        return {**inputs, "pixel_values": pixels, "image_sizes": torch.tensor([[28, 28]])}
    return {**inputs, "pixel_values": pixels}

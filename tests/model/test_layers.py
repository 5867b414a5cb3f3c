"""Configs of fewer layers, and models whose layers cannot go."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from ptl_fast.model import layers
from ptl_fast.model.families import layers_path
from support.models import make_model

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
}


def config_of(model_type: str, number: int = 5, **settings: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **TINY, num_hidden_layers=number, **settings)


def follow(model_type: str, kept: list[int], **settings: Any) -> PreTrainedConfig:
    config = config_of(model_type, **settings)
    layers.follow_layers(config, kept)
    assert config.num_hidden_layers == len(kept)
    return config


def test_config_follows_the_kept_layers_and_leaves_other_lists() -> None:
    """Here the end-of-sequence tokens are as many as the layers."""
    config = make_model("gemma2").config
    config.eos_token_id = [0, 5, 6, 7, 8]
    kinds = list(config.layer_types)
    layers.follow_layers(config, [0, 2, 3])
    assert config.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert config.eos_token_id == [0, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("model_type", "settings", "name", "after"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0, 3, 4]}, "mlp_only_layers", [0, 2]),
        ("bamba", {"mamba_n_heads": 4, "attn_layer_indices": [1, 4]}, "attn_layer_indices", [1]),
        ("lfm2", {"full_attn_idxs": [0, 1, 2, 3, 4]}, "full_attn_idxs", [0, 1, 2]),
        ("qwen2", {"max_window_layers": 2}, "max_window_layers", 2),
        ("qwen2", {"max_window_layers": 3}, "max_window_layers", 2),
        ("qwen2", {"max_window_layers": 28}, "max_window_layers", 28),
        ("deepseek_v3", {"first_k_dense_replace": 3}, "first_k_dense_replace", 2),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 0]}, "no_rope_layers", [1, 0, 1]),
        (
            "recurrent_gemma",
            {"block_types": ["recurrent", "recurrent", "attention"]},
            "block_types",
            ["recurrent", "recurrent", "recurrent"],
        ),
        (
            "gpt_neo",
            {"attention_types": [[["global", "local"], 2], [["global"], 1]]},
            "attention_types",
            [[["global", "local", "local"], 1]],
        ),
        ("falcon_h1", {"ssm_multipliers": [1.0, 2.0, 3.0, 4.0, 5.0]}, "ssm_multipliers", None),
    ],
)
def test_lists_and_counts_of_layers_follow(
    model_type: str, settings: dict[str, Any], name: str, after: object
) -> None:
    config = follow(model_type, [0, 1, 3], **settings)
    assert getattr(config, name) == (settings[name] if after is None else after)


def test_configs_of_single_layers_follow() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    config = config_of("gemma4_unified_text", 4, head_dim=8, global_head_dim=16, layer_types=kinds)
    layers.follow_layers(config, [0, 2, 3])
    assert [config.per_layer_config[layer].head_dim for layer in range(3)] == [8, 8, 16]


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("llama", {}, None),
        ("mixtral", {"num_local_experts": 2}, None),
        ("qwen3_moe", {"mlp_only_layers": [0, 3], "num_experts": 4}, None),
        ("bamba", {"mamba_n_heads": 4, "attn_layer_indices": [1, 4]}, None),
        ("minicpm3", {}, r"residual_scale is 0\.6.*, and would be 0\.8"),
        ("diffllama", {}, "lambda_init"),
        (
            "jamba",
            {"attn_layer_period": 2, "attn_layer_offset": 1},
            "layer 2 depends on its number",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaling"),
        ("gpt2", {}, None),
        ("minimax", {}, "decay of its linear attention"),
        ("qwen3_moe", {"decoder_sparse_step": 2, "num_experts": 4}, "layer 2 depends"),
    ],
)
def test_layers_that_depend_on_their_numbers_are_found(
    model_type: str, settings: dict[str, Any], reason: str | None
) -> None:
    config = config_of(model_type, **settings)
    path = layers_path(layers.on_meta(config))
    before = config.to_dict()
    found = layers.why_not_without(config, path, [0, 2, 3])
    if reason is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=reason):
            raise ValueError(found)
    assert config.to_dict() == before


def test_the_last_layer_of_a_kind_that_others_read_stays() -> None:
    """GPT-NeoX-Japanese's last layer alone has a bias."""
    config = config_of("gpt_neox_japanese", 4)
    path = layers_path(layers.on_meta(config))
    assert list(layers.layers_that_stay(config, path)) == [3]


def test_attention_patterns_are_those_of_the_class() -> None:
    sliding, full = "sliding_attention", "full_attention"
    assert layers.attention_pattern(config_of("gemma2"), 3) == [sliding, full, sliding]
    assert layers.attention_pattern(config_of("gemma3_text", 12), 7) == [
        *[sliding] * 5,
        full,
        sliding,
    ]
    own = config_of("gemma2", layer_types=[full, full, sliding, full, sliding])
    assert layers.attention_pattern(own, 3) is None, "no pattern that an engine could guess"
    assert layers.attention_pattern(config_of("llama"), 3) is None


def test_numbers_of_modules_follow_also_where_they_begin_at_one() -> None:
    blocks = nn.ModuleList(nn.Module() for _ in range(2))
    for old, block in zip((1, 3), blocks, strict=True):
        block.layer_idx, block.layer_number = old, old + 1
    layers.number_layers(blocks, [1, 3])
    assert [(block.layer_idx, block.layer_number) for block in blocks] == [(0, 1), (1, 2)]


def test_building_on_the_meta_device_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    layers.on_meta(config_of("llama"))
    assert torch.equal(torch.rand(1), expected)

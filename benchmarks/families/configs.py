"""Tiny configurations of the causal language models of transformers, and of variants that matter.

A type needs an entry in OWN only where the settings that all share make no model, or not the kind
of model that people run.
"""

from dataclasses import dataclass, field
from typing import Any

NUM_LAYERS, WIDTH, HIDDEN, VOCABULARY = 6, 48, 32, 200
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 0,
}
# Experts: as few and small as the types allow, under the names that they have.
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
}
# Attention with a latent (DeepSeek-V2's).
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 16,
    "mamba_dt_rank": 4,
}
GATED_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A tiny configuration."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Besides COMMON."""
    without: tuple[str, ...] = ()
    """Settings of COMMON that the type refuses."""
    note: str = ""
    """What is special about a variant."""

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return f"{self.model_type} ({self.note})" if self.note else self.model_type

    def config(self) -> Any:
        """transformers' config.

        Raises:
            Exception: of many types, where transformers refuses the settings.
        """
        from transformers import AutoConfig

        common = {name: value for name, value in COMMON.items() if name not in self.without}
        return AutoConfig.for_model(self.model_type, **{**common, **self.settings})


# What a type needs besides COMMON (or of it must do without, by the value DROP).
DROP = object()
OWN: dict[str, dict[str, Any]] = {
    "afmoe": {**EXPERTS, "num_dense_layers": 1},
    "axk1": {**LATENT, **EXPERTS},
    "axk2": {**LATENT, **EXPERTS, "index_n_heads": 2, "index_head_dim": 16},
    "bailing_hybrid": {**LATENT, **EXPERTS},
    "bamba": {**MAMBA, "attn_layer_indices": [1, 4]},
    "codegen": {"rotary_dim": 4, "n_ctx": 128, "n_inner": WIDTH},
    "beam": EXPERTS,
    "ctrl": {"dff": WIDTH},
    "deepseek_v2": {**LATENT, **EXPERTS},
    "deepseek_v3": {**LATENT, **EXPERTS},
    "cohere2_moe": EXPERTS,
    "deepseek_v4": EXPERTS,
    "deepseek_v32": {**LATENT, **EXPERTS, "index_n_heads": 2, "index_head_dim": 16},
    "dots1": EXPERTS,
    "dots3_note_text": {**LATENT, **EXPERTS},
    "ernie4_5_moe": EXPERTS,
    "exaone_moe": EXPERTS,
    "falcon": {"ffn_hidden_size": WIDTH, "head_dim": DROP},
    "falcon_h1": {**MAMBA},
    "flex_olmo": EXPERTS,
    "flint": EXPERTS,
    "gemma4_text": {
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 16,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
    "gemma3n_text": {
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * NUM_LAYERS,
    },
    "gemma4_unified_text": {"global_head_dim": 16},
    "glm_moe_dsa": {**LATENT, **EXPERTS, "index_n_heads": 2, "index_head_dim": 16},
    "glm4_moe": EXPERTS,
    "glm4_moe_lite": {**LATENT, **EXPERTS},
    "gpt-sw3": {"n_inner": WIDTH},
    "gpt2": {"n_inner": WIDTH},
    "gpt_bigcode": {"n_inner": WIDTH},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "gpt_oss": EXPERTS,
    "gptj": {"rotary_dim": 4, "n_inner": WIDTH},
    "granitemoe": EXPERTS,
    "granitemoehybrid": {
        **MAMBA,
        "num_local_experts": 0,
        "shared_intermediate_size": WIDTH,
        "layer_types": ["mamba", "attention"] * 3,
    },
    "granitemoeshared": {**EXPERTS, "shared_intermediate_size": WIDTH},
    "hunyuan_v1_moe": {**EXPERTS, "moe_topk": 2},
    "hy_v3": EXPERTS,
    "hy_v4": {**LATENT, **EXPERTS, "index_n_heads": 2, "index_head_dim": 16},
    "inkling2_text": EXPERTS,
    "inkling_text": EXPERTS,
    "jamba": {**MAMBA, **EXPERTS, "attn_layer_period": 3, "attn_layer_offset": 1},
    "jetmoe": EXPERTS,
    "kimi_linear": {**LATENT, **EXPERTS},
    "kolibri1": EXPERTS,
    "laguna": EXPERTS,
    "lfm2": {"block_multiple_of": 16, "intermediate_size": 72, "full_attn_idxs": [1, 4]},
    "lfm2_moe": {
        **EXPERTS,
        "layer_types": ["conv", "full_attention"] * 3,
        "num_dense_layers": 1,
    },
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": WIDTH},
    "longcat_flash": {**LATENT, **EXPERTS},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "expand": 2},
    "mellum": EXPERTS,
    "mimo_v2_flash": EXPERTS,
    "minicpm3": LATENT,
    "minimax": EXPERTS,
    "minimax_m2": EXPERTS,
    "minimax_m3_vl_text": {**EXPERTS, "shared_intermediate_size": WIDTH},
    "mixtral": EXPERTS,
    "moshi": {"ffn_dim": 2 * WIDTH},
    "nemotron_h": {
        **EXPERTS,
        "layers_block_type": ["mamba", "attention", "mlp"] * 2,
        "num_hidden_layers": DROP,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "olmo_hybrid": GATED_DELTA,
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": WIDTH, "word_embed_proj_dim": HIDDEN},
    "phimoe": EXPERTS,
    "qwen2_moe": EXPERTS,
    "qwen3_5_moe_text": {**EXPERTS, **GATED_DELTA},
    "qwen3_5_text": GATED_DELTA,
    "qwen3_moe": EXPERTS,
    "qwen3_next": {**EXPERTS, **GATED_DELTA},
    "recurrent_gemma": {"intermediate_size": 2 * WIDTH, "lru_width": HIDDEN},
    "solar_open": EXPERTS,
    "xglm": {"ffn_dim": WIDTH},
    "youtu": LATENT,
    "zaya": {**EXPERTS, "num_experts_per_tok": 1},
    "zamba2": {**MAMBA, "num_mem_blocks": 1, "layer_types": ["mamba", "mamba", "hybrid"] * 2},
}
# Models of other kinds under a type of the list.
VARIANTS = [
    Tiny(model_type="falcon", settings={"ffn_hidden_size": WIDTH, "new_decoder_architecture": True,
         "num_kv_heads": 2}, without=("head_dim",), note="new decoder"),
    Tiny(model_type="gpt2", settings={"n_inner": WIDTH, "scale_attn_by_inverse_layer_idx": True},
         note="attention scaled by layer"),
    Tiny(model_type="llama", settings={"mlp_bias": True, "attention_bias": True}, note="biases"),
    Tiny(model_type="opt", settings={"ffn_dim": WIDTH, "do_layer_norm_before": False,
         "word_embed_proj_dim": 16}, note="projected embeddings"),
    Tiny(model_type="qwen2", settings={"use_sliding_window": True, "sliding_window": 8,
         "max_window_layers": 3}, note="sliding window"),
    Tiny(model_type="qwen3_moe", settings={**EXPERTS, "mlp_only_layers": [0, 3]},
         note="dense layers between"),
    Tiny(model_type="gpt_neox", settings={"use_parallel_residual": False, "hidden_act": "relu"},
         note="sequential, ReLU"),
    Tiny(model_type="deepseek_v3", settings={**LATENT, **EXPERTS, "first_k_dense_replace": 6},
         note="dense"),
    Tiny(model_type="granitemoehybrid", settings={**MAMBA, **EXPERTS,
         "shared_intermediate_size": WIDTH, "layer_types": ["mamba", "attention"] * 3},
         note="with experts"),
]  # fmt: skip
# Types that are no text models by themselves, or whose smallest form takes gigabytes.
LEFT_OUT = {
    "blt": "a byte-level model of four transformers",
    "emu3": "several parts (checkpoints.md)",
    "fuyu": "several parts (checkpoints.md)",
    "gemma3": "several parts (checkpoints.md)",
    "gemma3n": "several parts (checkpoints.md)",
    "gemma4": "several parts (checkpoints.md)",
    "gemma4_assistant": "a drafting model",
    "gemma4_unified": "several parts (checkpoints.md)",
    "gemma4_unified_assistant": "a drafting model",
    "git": "several parts (checkpoints.md)",
    "got_ocr2": "several parts (checkpoints.md)",
    "llama4": "several parts (checkpoints.md)",
    "mllama": "several parts (checkpoints.md)",
    "moss_transcribe_diarize": "several parts (checkpoints.md)",
    "musicgen": "makes audio",
    "musicgen_melody": "makes audio",
    "phi4_multimodal": "several parts (checkpoints.md)",
    "qwen3_5": "several parts (checkpoints.md)",
    "qwen3_5_moe": "several parts (checkpoints.md)",
    "qwen4_exp": "several parts (checkpoints.md)",
    "trocr": "reads images",
    "whisper": "transcribes audio",
}


def every() -> list[Tiny]:
    """A configuration of every causal language model type of transformers, and the variants."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LEFT_OUT]
    plain = [_of_type(name) for name in types]
    return sorted([*plain, *VARIANTS], key=lambda each: each.label)


def _of_type(name: str) -> Tiny:
    own = OWN.get(name, {})
    return Tiny(
        model_type=name,
        settings={key: value for key, value in own.items() if value is not DROP},
        without=tuple(key for key, value in own.items() if value is DROP),
    )

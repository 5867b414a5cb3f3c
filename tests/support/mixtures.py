"""Tiny random mixtures of experts, one of each way in which transformers holds them."""

from typing import Any

from transformers import PreTrainedModel

from support.models import make_model

# an expert's width, the experts of a layer, and those that a token goes to
EXPERT_WIDTH, NUM_EXPERTS, ACTIVE = 24, 4, 2
NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts")
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
SETTINGS: dict[str, dict[str, Any]] = {
    # a dense layer between, of another width
    "qwen3_moe": {"moe_intermediate_size": EXPERT_WIDTH, "mlp_only_layers": [1]},
    "mixtral": {"intermediate_size": EXPERT_WIDTH, "num_local_experts": NUM_EXPERTS},
    # transposed, gate and up interleaved, with biases
    "gpt_oss": {"intermediate_size": EXPERT_WIDTH, "num_local_experts": NUM_EXPERTS},
    # a shared expert, and a dense layer at the beginning
    "deepseek_v3": {
        **LATENT,
        "moe_intermediate_size": EXPERT_WIDTH,
        "n_routed_experts": NUM_EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
    },
    # two shared experts that are one FFN
    "deepseek_v2": {
        **LATENT,
        "moe_intermediate_size": EXPERT_WIDTH,
        "n_routed_experts": NUM_EXPERTS,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    # every expert gets a copy of all tokens
    "llama4_text": {"intermediate_size": EXPERT_WIDTH, "num_local_experts": NUM_EXPERTS},
}
TYPES = list(SETTINGS)


def make_mixture(model_type: str, experts: int = NUM_EXPERTS, **overrides: Any) -> PreTrainedModel:
    """A random float32 model of 3 layers."""
    common = {"num_experts_per_tok": ACTIVE, "num_hidden_layers": 3}
    own = {"num_experts": NUM_EXPERTS, **SETTINGS[model_type]}
    # under the name that the type has for it; the others are of no use to it
    number = {name: experts for name in own if name in NUMBERS}
    return make_model(model_type, **{**common, **own, **number, **overrides})

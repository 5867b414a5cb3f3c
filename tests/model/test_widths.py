"""Where a config holds the FFN's width."""

import pytest
from transformers import AutoConfig

from ptl_fast.model.widths import (
    expert_limits,
    ffn_width,
    num_active_experts,
    num_experts,
    set_num_experts,
    set_width,
    tokens_per_ffn,
)

ONE_DENSE = {"first_k_dense_replace": 1}


@pytest.mark.parametrize(
    ("model_type", "settings", "width"),
    [
        ("llama", {"intermediate_size": 96}, 96),
        ("gpt2", {"n_embd": 32}, 128),
        ("gpt2", {"n_embd": 32, "n_inner": 96}, 96),
        ("opt", {"ffn_dim": 96}, 96),
        ("falcon", {"ffn_hidden_size": 96}, 96),
        ("recurrent_gemma", {"intermediate_size": 192}, 96),
        ("granitemoehybrid", {"num_local_experts": 0, "shared_intermediate_size": 96}, 96),
        ("lfm2", {"intermediate_size": 144, "block_multiple_of": 32}, 96),
    ],
)
def test_width_is_read_and_written_where_the_type_has_it(
    model_type: str, settings: dict[str, int], width: int
) -> None:
    config = AutoConfig.for_model(model_type, **settings)
    assert ffn_width(config) == width
    set_width(config, 48)
    assert ffn_width(config) == 48
    assert ffn_width(type(config)(**config.to_dict())) == 48, "also after it was saved"


@pytest.mark.parametrize(
    ("model_type", "settings", "experts", "width"),
    [
        ("qwen3_moe", {"num_experts": 6, "moe_intermediate_size": 24}, 6, 24),
        # a field that the type does not have means nothing
        ("mixtral", {"num_local_experts": 6, "moe_intermediate_size": 24}, 6, 96),
        ("deepseek_v3", {"n_routed_experts": 6, "moe_intermediate_size": 24, **ONE_DENSE}, 6, 24),
        # dense throughout
        ("deepseek_v3", {"n_routed_experts": 6, "first_k_dense_replace": 3}, 0, 96),
        ("qwen3_moe", {"num_experts": 6, "mlp_only_layers": [0, 1, 2]}, 0, 96),
        ("granitemoehybrid", {"num_local_experts": 0, "shared_intermediate_size": 48}, 0, 48),
        ("llama", {}, 0, 96),
    ],
)
def test_the_width_of_a_mixture_is_that_of_an_expert(
    model_type: str, settings: dict, experts: int, width: int
) -> None:
    common = {"num_hidden_layers": 3, "intermediate_size": 96, "num_experts_per_tok": 2}
    config = AutoConfig.for_model(model_type, **{**common, **settings})
    assert (num_experts(config), ffn_width(config)) == (experts, width)
    assert tokens_per_ffn(config, 600) == (200 if experts else 600)
    if experts:
        assert num_active_experts(config) == 2


@pytest.mark.parametrize(
    ("model_type", "settings", "fewest"),
    [
        # as many as a token goes to
        pytest.param("qwen3_moe", {"num_experts": 16}, 4, id="no groups"),
        # a group is chosen by its two highest, and each of the two chosen must have two
        pytest.param(
            "deepseek_v3",
            {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, **ONE_DENSE},
            8,
            id="two of four groups",
        ),
        pytest.param(
            "deepseek_v3",
            {"n_routed_experts": 16, "n_group": 4, "topk_group": 1, **ONE_DENSE},
            16,
            id="one of four groups",
        ),
    ],
)
def test_a_token_can_still_go_to_as_many_experts(
    model_type: str, settings: dict, fewest: int
) -> None:
    common = {"num_hidden_layers": 3, "num_experts_per_tok": 4}
    limits = expert_limits(AutoConfig.for_model(model_type, **{**common, **settings}))
    assert (limits.number, limits.active, limits.fewest) == (16, 4, fewest)


def test_a_second_field_with_the_number_of_experts_follows() -> None:
    config = AutoConfig.for_model("deepseek_v32", n_routed_experts=8, num_experts=8)
    set_num_experts(config, 6)
    again = AutoConfig.for_model(**config.to_dict())
    assert num_experts(again) == 6


def test_a_width_that_no_field_says_is_zero() -> None:
    assert ffn_width(AutoConfig.for_model("bloom")) == 0

"""What cannot be pruned is refused from the config, with its own reason and with what helps."""

import pytest

from ptl_fast.model.support import check_support
from support.configs import tiny_config
from support.mixtures import make_mixture
from support.models import FAMILIES
from support.wholes import whole_config

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 1}


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_neox", "gpt2", "glm4", "starcoder2"])
@pytest.mark.parametrize("needs_neurons", [True, False])
def test_what_can_lose_neurons_is_supported(family: str, needs_neurons: bool) -> None:
    config = tiny_config(family, head_dim=16)
    before = config.to_dict()
    check_support(config, "model", needs_neurons=needs_neurons)
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("model_type", "others", "reason"),
    [
        ("jetmoe", {"num_local_experts": 4}, r"mixture of experts \(.* form that is not known"),
        ("bloom", {}, "no field of its config can say another width"),
        ("bitnet", {}, "mlp.ffn_sub_norm.weight has the FFN's width too"),
    ],
)
def test_a_model_whose_neurons_must_stay_may_lose_layers(
    model_type: str, others: dict, reason: str
) -> None:
    config = tiny_config(model_type, **others)
    check_support(config, "it", needs_neurons=False)
    with pytest.raises(ValueError, match=rf"--model it \(model_type {model_type}\).*{reason}") as e:
        check_support(config, "it", needs_neurons=True)
    assert "docs/models.md" in str(e.value)
    assert "its layers can go (--keep 1 --drop-layers N)" in str(e.value)


@pytest.mark.parametrize(
    ("model_type", "others", "reason"),
    [
        ("llama", {}, r"it has no experts \(--keep-experts\); leave --keep-experts out"),
        ("jetmoe", {"num_local_experts": 4}, "form that is not known"),
        ("zaya", EXPERTS, r"has shape \(5, 256\).*docs/models.md lists the types whose experts"),
    ],
)
def test_experts_that_must_stay_are_told(model_type: str, others: dict, reason: str) -> None:
    config = tiny_config(model_type, **others)
    with pytest.raises(ValueError, match=rf"--model it \(model_type {model_type}\).*{reason}"):
        check_support(config, "it", needs_neurons=False, drops_experts=True)


def test_experts_that_can_go_are_supported() -> None:
    check_support(make_mixture("gpt_oss").config, "it", needs_neurons=False, drops_experts=True)


@pytest.mark.parametrize(
    ("model_type", "others", "reason"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, "sends a token to 9 of 4 experts; correct the"),
        ("deepseek_v3", {"n_group": 3}, "has 4 experts in 3 groups"),
        ("deepseek_v3", {"topk_group": 3}, "choose 3 of 2 groups of experts"),
    ],
)
def test_a_router_that_fails_at_the_first_token_is_told(
    model_type: str, others: dict, reason: str
) -> None:
    """It can be built, and its layers could go."""
    config = make_mixture(model_type, **others).config
    with pytest.raises(ValueError, match=f"is not supported: its config .*{reason}"):
        check_support(config, "it", needs_neurons=False)


def test_layers_are_offered_only_where_they_can_go() -> None:
    with pytest.raises(ValueError, match="neurons cannot be removed") as error:
        check_support(tiny_config("bitnet", num_hidden_layers=1), "it", needs_neurons=True)
    assert "its layers can go" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("t5", "encoder with a decoder"),
        ("vit", "no causal language model"),
        ("bert", "is_decoder false"),
    ],
)
@pytest.mark.parametrize("needs_neurons", [True, False])
def test_what_is_no_decoder_is_refused_whatever_shall_go(
    model_type: str, reason: str, needs_neurons: bool
) -> None:
    with pytest.raises(ValueError, match=rf"\(model_type {model_type}\) is not supp.*{reason}"):
        check_support(tiny_config(model_type), "it", needs_neurons=needs_neurons)


def test_a_config_without_a_size_is_told() -> None:
    config = tiny_config("mamba")
    del config.num_attention_heads
    with pytest.raises(ValueError, match="no single number for num_attention_heads"):
        check_support(config, "it", needs_neurons=False)


def test_a_model_of_several_parts_is_supported_where_its_decoder_is() -> None:
    check_support(whole_config("gemma3"), "it", needs_neurons=True)
    for model_type, why in (
        (
            "cohere2_vision",
            r"model_type cohere2_vision\).*several parts.* scale its decoder's logits",
        ),
        ("paligemma", "use_bidirectional_attention, so that its tokens attend to later ones"),
    ):
        with pytest.raises(ValueError, match=why):
            check_support(whole_config(model_type), "it", needs_neurons=True)


def test_a_config_that_makes_no_model_is_told_in_one_line() -> None:
    config = tiny_config("llama")
    config.hidden_act = "nothing"
    with pytest.raises(ValueError, match=r"cannot build it from its config\.json") as error:
        check_support(config, "it", needs_neurons=True)
    assert "\n" not in str(error.value)

"""What cannot be pruned is refused from the config, with its own reason and with what helps."""

import pytest
from transformers import AutoModelForCausalLM, Gemma3Config, PretrainedConfig

from ptl_fast.model.support import check_support
from support.configs import tiny_config
from support.models import FAMILIES

NEURONS, LAYERS = frozenset({"neurons"}), frozenset({"layers"})
ROW = "row in ptl_fast/model/families.py"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", [NEURONS, LAYERS, NEURONS | LAYERS])
def test_tested_families_are_supported(family: str, wanted: frozenset[str]) -> None:
    check_support(tiny_config(family), "model", wanted)


@pytest.mark.parametrize(
    ("model_type", "others", "wanted", "reason"),
    [
        ("mixtral", {"num_local_experts": 4}, NEURONS, r"mixture of experts \(mlp.experts"),
        ("qwen3_moe", {"num_experts": 4}, NEURONS, "mixture of experts"),
        ("deepseek_v3", {"first_k_dense_replace": 2}, NEURONS, "mixture of experts.*of layer 2"),
        ("granitemoe", {"num_local_experts": 4}, NEURONS, "mixture of experts"),
        ("gpt_neox", {}, NEURONS, r"no gate \(mlp.dense_h_to_4h, mlp.dense_4h_to_h in gpt_neox"),
        ("starcoder2", {}, NEURONS, r"no gate \(mlp.c_fc, mlp.c_proj"),
        ("gpt2", {}, NEURONS, r"no gate \(mlp.c_fc, mlp.c_proj in transformer.h\)"),
        ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}, NEURONS, r"no gate \(fc1, fc2"),
        ("falcon", {}, NEURONS, "no gate"),
        ("bloom", {}, NEURONS, "no field of its config sets the width of an FFN"),
        ("mamba", {}, NEURONS, "the width in its config is not that of an FFN alone"),
        ("bitnet", {}, NEURONS, "mlp.ffn_sub_norm.weight of layer 0 has the FFN's width too"),
        ("diffllama", {}, LAYERS, "in layer 1, self_attn.lambda_init is 0.35.* there and 0.2"),
        ("minicpm3", {}, LAYERS, "in layer 1, residual_scale is 0.7"),
        ("gemma4_text", {}, LAYERS, "embed_tokens_per_layer.weight has a part for each layer"),
        ("t5", {}, NEURONS, "encoder with a decoder"),
        ("vit", {}, NEURONS, "no causal language model"),
    ],
)
def test_what_cannot_be_pruned_has_a_reason_of_its_own(
    model_type: str, others: dict, wanted: frozenset[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"--model it \(model_type {model_type}\).*{reason}") as e:
        check_support(tiny_config(model_type, **others), "it", wanted)
    assert ROW not in str(e.value), "no row could help"


@pytest.mark.parametrize("model_type", ["glm4", "falcon_h1", "recurrent_gemma"])
def test_a_row_is_proposed_where_one_helps(model_type: str) -> None:
    with pytest.raises(ValueError, match=rf"gated FFNs have other names.*{ROW}"):
        check_support(tiny_config(model_type, head_dim=16), "it", NEURONS)


def test_layers_that_differ_by_place_and_not_by_a_list_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Jamba's: which layer is of which kind follows from its index."""
    config = tiny_config("gemma2", head_dim=16)
    check_support(config, "it", LAYERS)
    monkeypatch.setattr("ptl_fast.model.skeleton.resize_config", _forget_the_list)
    with pytest.raises(ValueError, match="differ by their place: in layer 1, "):
        check_support(config, "it", LAYERS)


def _forget_the_list(config: PretrainedConfig, width: int, kept: list[int]) -> None:
    """A config whose kinds of layers start from the beginning again."""
    config.num_hidden_layers, config.layer_types = len(kept), config.layer_types[: len(kept)]


def test_the_other_thing_is_offered_where_it_is_possible() -> None:
    with pytest.raises(ValueError, match=r"its layers can go .--keep 1 --drop-layers N"):
        check_support(tiny_config("bitnet"), "it", NEURONS)
    with pytest.raises(ValueError, match=r"its neurons can go .--keep without --drop-layers"):
        check_support(tiny_config("minicpm3"), "it", NEURONS | LAYERS)


def test_a_model_of_several_parts_is_told_from_its_text_decoder() -> None:
    text = tiny_config("gemma3_text", head_dim=16)
    check_support(text, "it", NEURONS)
    whole = Gemma3Config(text_config=text.to_dict())
    with pytest.raises(ValueError, match=r"model_type gemma3\).*text decoder .gemma3_text. is one"):
        check_support(whole, "it", NEURONS)


def test_ffns_of_several_widths_are_told_from_missing_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from_config = AutoModelForCausalLM.from_config

    def uneven(config: PretrainedConfig, **others: object) -> object:
        model = from_config(config, **others)
        layer = model.model.layers[1].mlp
        for linear, rows in ((layer.gate_proj, 0), (layer.up_proj, 0), (layer.down_proj, 1)):
            half = linear.weight.narrow(rows, 0, linear.weight.shape[rows] // 2)
            linear.weight = type(linear.weight)(half.detach())
            linear.in_features = linear.weight.shape[1]
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", uneven)
    with pytest.raises(ValueError, match="differ in width from layer to layer"):
        check_support(tiny_config("llama"), "it", NEURONS)


def test_a_config_that_makes_no_model_is_told_in_one_line() -> None:
    config = tiny_config("llama")
    config.hidden_act = "nothing"
    with pytest.raises(ValueError, match=r"cannot build it from its config\.json") as error:
        check_support(config, "it", NEURONS)
    assert "\n" not in str(error.value)

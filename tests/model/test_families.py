"""Where a family keeps its layers and FFN, and what is said of a model that has none."""

import pytest
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ptl_fast.model import families
from ptl_fast.model.families import find_family
from ptl_fast.model.layers import on_meta
from support.models import make_model


def test_other_names_are_named_with_what_was_looked_for(llama: PreTrainedModel) -> None:
    for layer in llama.model.layers:
        layer.feed = layer.mlp
        del layer.mlp
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*model\.layers\.0 for mlp\.gate_proj"):
        find_family(llama)
    family = find_family(llama, needs_neurons=False)
    assert (family.layers, family.ffn) == ("model.layers", None)
    assert families.feed_forwards(llama, family) == {}


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        (
            "jetmoe",
            {"num_local_experts": 2},
            r"mixture of experts \(.*its experts have a form that is not known",
        ),
        ("bitnet", {}, r"mlp\.ffn_sub_norm\.weight has the FFN's width too"),
        ("bert", {}, "is_decoder false"),
        ("bart", {}, "says num_hidden_layers 5.*model.decoder.layers 12"),
        ("xlm", {}, "is_decoder false"),
    ],
)
def test_each_reason_is_its_own(model_type: str, settings: dict[str, int], reason: str) -> None:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    with pytest.raises(ValueError, match=reason):
        find_family(on_meta(config))


def test_the_missing_part_is_named_with_its_layer(llama: PreTrainedModel) -> None:
    del llama.model.layers[3].mlp.up_proj
    with pytest.raises(ValueError, match=r"did not find model\.layers\.3\.mlp\.up_proj"):
        find_family(llama)


def test_ffns_of_different_widths_are_refused(llama: PreTrainedModel) -> None:
    llama.model.layers[1].mlp.down_proj = nn.Linear(40, 32)
    with pytest.raises(ValueError, match=r"different widths \[40, 48\]; uniform width is needed"):
        find_family(llama)


def test_parts_are_those_of_the_model(any_model: PreTrainedModel) -> None:
    family = find_family(any_model)
    ffns = families.feed_forwards(any_model, family)
    assert list(ffns) == ["0", "1", "2", "3", "4"]
    for layer, ffn in zip(any_model.model.layers, ffns.values(), strict=True):
        assert ffn.module is layer.mlp
        assert ffn.down is layer.mlp.down_proj
        assert sum(linear.out_features for linear in ffn.inputs) == 2 * 48


def test_config_has_the_new_width_and_layers() -> None:
    config = make_model("gemma2").config
    kinds = list(config.layer_types)
    families.resize_config(config, 40, [0, 2, 3])
    assert (config.intermediate_size, config.num_hidden_layers) == (40, 3)
    assert config.layer_types == [kinds[0], kinds[2], kinds[3]]
    families.resize_config(config, 24, [0, 1, 2])
    assert config.layer_types == [kinds[0], kinds[2], kinds[3]], "no layer went"


@pytest.mark.parametrize(
    ("attention", "one_row"), [("sdpa", False), ("eager", False), ("flash_attention_2", True)]
)
def test_only_flash_attention_needs_one_row(
    attention: str, one_row: bool, llama: PreTrainedModel
) -> None:
    llama.config._attn_implementation = attention
    assert families.needs_one_row(llama) is one_row

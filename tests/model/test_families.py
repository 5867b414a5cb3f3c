"""Where a family keeps its layers and FFN, and what is said of a model that has none."""

import pytest
from torch import nn
from transformers import PreTrainedModel

from ptl_fast.model import families
from ptl_fast.model.families import find_family
from support.models import make_model


def test_unsupported_architecture_names_what_was_looked_for() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=8))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel.*model\.layers.*mlp\.gate_proj"):
        find_family(model)


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


def test_config_follows_the_kept_layers_and_leaves_other_lists() -> None:
    """Here the end-of-sequence tokens are as many as the layers."""
    config = make_model("gemma2").config
    config.eos_token_id = [0, 5, 6, 7, 8]
    kinds = list(config.layer_types)
    families.resize_config(config, 40, [0, 2, 3])
    assert (config.intermediate_size, config.num_hidden_layers) == (40, 3)
    assert config.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert config.eos_token_id == [0, 5, 6, 7, 8]
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

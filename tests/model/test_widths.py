"""Where a config holds the FFN's width."""

import pytest
from transformers import AutoConfig

from ptl_fast.model.widths import ffn_width, set_width


@pytest.mark.parametrize(
    ("model_type", "settings", "width"),
    [
        ("llama", {"intermediate_size": 96}, 96),
        ("gpt2", {"n_embd": 32}, 128),
        ("gpt2", {"n_embd": 32, "n_inner": 96}, 96),
        ("opt", {"ffn_dim": 96}, 96),
        ("falcon", {"ffn_hidden_size": 96}, 96),
        ("recurrent_gemma", {"intermediate_size": 192}, 96),
        ("granitemoehybrid", {"intermediate_size": 8, "shared_intermediate_size": 96}, 96),
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


def test_a_width_that_no_field_says_is_zero() -> None:
    assert ffn_width(AutoConfig.for_model("bloom")) == 0

"""Where a family keeps its layers and FFN, and what is said of a model that has none."""

import pytest

from ptl_fast.model.families import find_family


def test_unsupported_architecture_names_what_was_looked_for() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=8))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel.*model\.layers.*mlp\.gate_proj"):
        find_family(model)

"""Text decoders that transformers has inside a whole alone."""

from typing import Any

import pytest
import torch

from ptl_fast.model import decoders, parts
from support.configs import tiny_config
from support.wholes import make_whole


@pytest.fixture(scope="module")
def decoder() -> Any:
    return parts.decoder_of(make_whole("qwen2_5_vl"))


def test_documents_in_one_row_do_not_see_one_another(decoder: Any) -> None:
    ids = torch.randint(6, 290, (1, 12))
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with torch.inference_mode():
        packed = decoder(input_ids=ids, position_ids=positions, use_cache=False).logits
        base = decoder.base_model(input_ids=ids, position_ids=positions, use_cache=False)
        alone = [decoder(input_ids=each, use_cache=False).logits for each in ids.split([5, 7], 1)]
        assert torch.equal(decoder.lm_head(base.last_hidden_state), packed)
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-5, rtol=1e-5)


def test_a_decoder_generates_with_a_cache_what_it_does_without(decoder: Any) -> None:
    ids = torch.randint(6, 290, (2, 9))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "min_new_tokens": 4}
    found = [
        decoder.generate(ids, do_sample=False, use_cache=cached, **options)
        for cached in (True, False)
    ]
    assert torch.equal(*found)


def test_loss_and_last_logits_are_those_of_any_causal_model(decoder: Any) -> None:
    ids = torch.randint(6, 290, (2, 9))
    with torch.inference_mode():
        whole, last = decoder(input_ids=ids, labels=ids), decoder(input_ids=ids, logits_to_keep=2)
    expected = torch.nn.functional.cross_entropy(
        whole.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    torch.testing.assert_close(whole.loss, expected)
    torch.testing.assert_close(last.logits, whole.logits[:, -2:])


def test_a_class_is_made_only_of_a_text_model() -> None:
    assert decoders.provide_class(tiny_config("llama"))
    assert decoders.provide_class(tiny_config("ernie4_5_vl_moe").get_text_config()) is False
    positions = torch.nn.Identity()
    decoders.pack_positions_(positions, tiny_config("llama"))
    assert not positions._forward_pre_hooks

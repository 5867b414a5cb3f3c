"""A text decoder inside a whole: the same modules, so that what becomes of one becomes of both."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ptl_fast.model import families, flops, parts
from ptl_fast.model.layers import on_meta
from ptl_fast.pruning.compact import compact_
from support.configs import tiny_config
from support.models import make_model
from support.plans import layer_plan, random_plan
from support.wholes import make_whole, whole_config, with_image

TYPES = ["gemma3", "mistral3", "qwen3_5", "qwen2_5_vl", "llava"]
TOLERANCE = 2e-5  # float32; the sums run over fewer terms, in another order


def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


@pytest.fixture(params=TYPES)
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_decoder_computes_what_the_whole_does_on_text(model_type: str) -> None:
    whole = make_whole(model_type)
    decoder = parts.decoder_of(whole)
    assert parts.whole_of(decoder) is whole
    assert decoder.config is whole.config.get_text_config()
    ids = torch.randint(6, 290, (2, 16))
    assert torch.equal(logits(decoder, input_ids=ids), logits(whole, input_ids=ids))
    parts.check_logits(decoder)
    inside = {id(parameter) for parameter in whole.parameters()}
    own = {id(parameter) for parameter in decoder.parameters()}
    assert own < inside, "the vision tower is not the decoder's"


def test_neurons_go_from_the_whole(model_type: str) -> None:
    """Logits of an image with text are those of the whole with the neurons' activations at zero."""
    whole = make_whole(model_type)
    decoder = parts.decoder_of(whole)
    family, plan = families.find_family(decoder), random_plan(decoder)
    assert plan.kept_neurons is not None
    inputs, hooks = with_image(model_type), []
    dense = logits(whole, **inputs)
    ffns = families.feed_forwards(decoder, family).values()
    for ffn, kept in zip(ffns, plan.kept_neurons, strict=True):
        mask = torch.zeros(ffn.width)
        mask[kept] = 1
        hooks.append(
            ffn.down.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,))
        )
    expected = logits(whole, **inputs)
    for hook in hooks:
        hook.remove()
    assert (dense - expected).abs().max() > 100 * TOLERANCE
    compact_(decoder, family, plan)
    torch.testing.assert_close(logits(whole, **inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert whole.config.get_text_config().intermediate_size == plan.width


def test_layers_go_from_the_whole(model_type: str) -> None:
    whole = make_whole(model_type)
    decoder = parts.decoder_of(whole)
    family = families.find_family(decoder)
    inputs = with_image(model_type)
    skipped = families.decoder_layers(decoder, family)[1]
    hook = skipped.register_forward_hook(
        lambda _, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
    )
    expected = logits(whole, **inputs)
    hook.remove()
    compact_(decoder, family, layer_plan([1]))
    torch.testing.assert_close(logits(whole, **inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert whole.config.get_text_config().num_hidden_layers == 4
    rebuilt = on_meta(whole.config).state_dict()
    assert {name: each.shape for name, each in rebuilt.items()} == {
        name: each.shape for name, each in whole.state_dict().items()
    }


def test_other_parts_count_as_parameters_alone() -> None:
    whole = make_whole("gemma3")
    config = parts.decoder_config(whole_config("gemma3"))
    assert flops.count_weights(config).num_parameters == whole.num_parameters()
    alone = flops.count_weights(whole.config.get_text_config())
    assert alone.num_parameters + (parts.parameters_beside(config) or 0) == whole.num_parameters()
    assert flops.flops_per_token(config, 10) == flops.flops_per_token(
        whole.config.get_text_config(), 10
    )
    smaller = flops.resized(config, 24, 2)
    assert parts.parameters_beside(smaller) == parts.parameters_beside(config)
    assert parts.loader(smaller) == "AutoModelForImageTextToText"
    assert "gemma3_text" in parts.notes(smaller)[0]


def test_any_other_model_is_its_own_decoder() -> None:
    model, config = make_model("llama"), tiny_config("llama")
    assert parts.decoder_of(model) is model is parts.whole_of(model)
    assert parts.decoder_config(config) is config
    assert parts.parameters_beside(config) is parts.why_not(config) is None
    assert parts.loader(config) == AutoModelForCausalLM.__name__
    assert parts.notes(config) == []
    parts.check_logits(model)


def test_the_whole_says_what_the_decoder_was_given_to_generate_with() -> None:
    decoder = parts.decoder_of(make_whole("gemma3"))
    decoder.generation_config = type(decoder.generation_config)(eos_token_id=5)
    assert parts.whole_of(decoder).generation_config.eos_token_id == 5


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("cohere2_vision", "does not scale its decoder's logits"),
        ("ernie4_5_vl_moe", "no model of its decoder's type ernie4_5_vl_moe_text"),
    ],
)
def test_why_a_decoder_cannot_be_had_is_told(model_type: str, why: str) -> None:
    config = (
        whole_config(model_type)
        if model_type != "ernie4_5_vl_moe"
        else tiny_config("ernie4_5_vl_moe")
    )
    assert why in (parts.why_not(config) or "")
    assert parts.decoder_config(config) is config


def test_a_whole_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "OTHER_LOGITS", {})
    decoder = parts.decoder_of(make_whole("cohere2_vision"))
    with pytest.raises(ValueError, match="computes other logits on text than Cohere2ForCausalLM"):
        parts.check_logits(decoder)

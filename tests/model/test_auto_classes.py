"""The Auto class that has all parts of a model."""

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

from ptl_fast.model.auto_classes import auto_class, has_parts
from support.configs import tiny_config
from support.wholes import whole_config


def test_a_whole_is_loaded_with_all_of_its_parts() -> None:
    whole = whole_config("gemma3")
    assert has_parts(whole)
    assert auto_class(whole) is AutoModelForImageTextToText
    assert not has_parts(whole.get_text_config())
    assert auto_class(whole.get_text_config()) is AutoModelForCausalLM
    assert auto_class(tiny_config("qwen3_asr")) is AutoModelForMultimodalLM

"""Counts from the config alone equal those of the real model."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ptl_fast.config.presets import PRESETS, shipped_config
from ptl_fast.model import flops
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.pruning.compact import compact_
from support.mixtures import make_mixture
from support.models import FAMILIES, make_model
from support.plans import layer_plan, neuron_plan, random_kept


def counted_by_torch(model: Any, num_tokens: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.randint(2, 384, (1, num_tokens)), use_cache=False)
    return counter.get_total_flops()


def assert_counts_agree(model: PreTrainedModel, num_tokens: int) -> None:
    """With the language-model head, and without: the decoder alone."""
    ours = flops.flops_per_sample(model.config, num_tokens)
    assert ours == pytest.approx(counted_by_torch(model, num_tokens), rel=0.005)
    assert ours == num_tokens * flops.model_size(model.config, num_tokens)["flops_per_token"]
    headless = flops.flops_per_sample(model.config, num_tokens, lm_head=False)
    assert headless == pytest.approx(counted_by_torch(model.get_decoder(), num_tokens), rel=0.005)


@pytest.mark.parametrize("num_tokens", [1, 24, 77])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_agree_with_torch_counter(family: str, num_tokens: int) -> None:
    """Dense, and then with an odd width and without two layers. Eager attention computes the full
    square.
    """
    model = make_model(family, attn_implementation="eager")
    assert_counts_agree(model, num_tokens)
    compact_(model, find_family(model), neuron_plan(random_kept(21)))
    compact_(model, find_family(model), dataclasses.replace(layer_plan([1, 2]), width=21))
    assert (model.config.intermediate_size, model.config.num_hidden_layers) == (21, 3)
    assert_counts_agree(model, num_tokens)


def test_flops_agree_with_torch_counter_under_sdpa() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert_counts_agree(make_model("llama", attn_implementation="sdpa"), 77)


def test_family_without_a_formula_is_counted_in_its_model() -> None:
    assert "olmo2" not in flops.EXTRAS
    assert_counts_agree(make_model("olmo2", attn_implementation="eager"), 24)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("family", FAMILIES)
def test_formula_counts_what_the_model_has(family: str, bias: bool, tied: bool) -> None:
    config = make_model(family).config
    config.tie_word_embeddings = tied
    for name in ("attention_bias", "mlp_bias"):
        if hasattr(config, name):
            setattr(config, name, bias)
    assert flops.count_weights(config) == flops._count_in_model(config)


def test_causal_attention_is_the_lower_triangle() -> None:
    """3 tokens attend to 1 + 2 + 3 = 6 tokens instead of 9; one attended token costs 4 * 32 in each
    of 5 layers.
    """
    config = make_model("llama").config
    square, triangle = (
        flops.flops_per_sample(config, 3),
        flops.flops_per_sample(config, 3, causal=True),
    )
    assert square - triangle == (9 - 6) * 4 * 32 * 5


@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_size_is_that_of_the_compacted_model(family: str) -> None:
    model = make_model(family)
    predicted = flops.model_size(flops.resized(model.config, 20, 5), 16)
    compact_(model, find_family(model), neuron_plan(random_kept(20)))
    assert predicted["num_parameters"] == model.num_parameters()
    assert predicted == flops.model_size(model.config, 16)
    compact_(make_model(family), find_family(model), layer_plan([1, 2]))
    assert flops.resized(model.config, 20, 3).num_hidden_layers == 3


TOTALS = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "google/gemma-2-9b": 9_241_705_984,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
}


@pytest.mark.parametrize("name", TOTALS)
def test_shipped_architectures_have_the_published_number_of_parameters(name: str) -> None:
    config: Any = shipped_config(name)
    assert flops.count_weights(config).num_parameters == TOTALS[name]
    numbers = vars(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**numbers))
    assert model.num_parameters() == TOTALS[name]
    assert flops.count_weights(model.config) == flops._count_in_model(model.config)


def test_every_shipped_architecture_has_its_total_here() -> None:
    files = {file.stem.replace("--", "/") for file in (PRESETS / "configs").glob("*.json")}
    assert files == set(TOTALS)
    for file in (PRESETS / "configs").glob("*.json"):
        assert json.loads(file.read_text())["model_type"] in flops.EXTRAS


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_of_experts_all_parameters_count_and_the_flops_of_those_that_a_token_goes_to(
    model_type: str,
) -> None:
    model = make_mixture(model_type)
    weights = flops.count_weights(model.config)
    assert weights.num_parameters == model.num_parameters()
    # watched, experts run one by one on their own tokens, in products that torch counts
    for ffn in feed_forwards(model, find_family(model)).values():
        ffn.down.register_forward_pre_hook(lambda module, args: None)
    ours = flops.flops_per_sample(model.config, 24)
    with sdpa_kernel(SDPBackend.MATH):
        assert ours == pytest.approx(counted_by_torch(model, 24), rel=0.005)

"""What has the experts' width is found, and what cannot follow it is named."""

from typing import Any

import pytest
import torch

from ptl_fast.model.families import find_family
from ptl_fast.model.layers import on_meta
from ptl_fast.model.mixtures import find_mixture
from ptl_fast.model.widths import ffn_width
from support.mixtures import make_mixture


@pytest.mark.parametrize(
    ("model_type", "parts"),
    [
        pytest.param("qwen3_moe", [], id="dense layers have a width of their own"),
        pytest.param("mixtral", [], id="experts alone"),
        pytest.param("deepseek_v3", [("mlp.shared_experts", 1)], id="one shared expert"),
        pytest.param("deepseek_v2", [("mlp.shared_experts", 2)], id="two shared experts"),
        pytest.param("llama4_text", [("feed_forward.shared_expert", 1)], id="Llama 4"),
    ],
)
def test_what_follows_the_experts_width(model_type: str, parts: list) -> None:
    family = find_family(make_mixture(model_type))
    assert family.mixture is not None
    assert [(each.path, each.parts) for each in family.mixture.beside] == parts


def test_a_model_without_weights_tells_the_same() -> None:
    model = make_mixture("deepseek_v2")
    assert find_family(on_meta(model.config)) == find_family(model)


def test_a_type_that_is_dense_throughout_has_no_mixture() -> None:
    model = make_mixture("deepseek_v3", first_k_dense_replace=3)
    family = find_family(model)
    assert family.mixture is None
    assert family.ffn is not None
    assert ffn_width(model.config) == 48


def test_another_width_than_the_configs_is_refused() -> None:
    model = make_mixture("mixtral")
    model.config.intermediate_size = 32
    mixture, reason = find_mixture(model, "model.layers")
    assert mixture is None
    assert reason == "its experts are 24 wide, and its config says 32"


def test_another_tensor_of_their_width_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mixtral import modeling_mixtral

    block = modeling_mixtral.MixtralSparseMoeBlock
    original = block.__init__

    def build(self: torch.nn.Module, config: Any) -> None:
        original(self, config)
        self.register_buffer("scale", torch.ones(config.intermediate_size))

    monkeypatch.setattr(block, "__init__", build)
    mixture, reason = find_mixture(make_mixture("mixtral"), "model.layers")
    assert mixture is None
    assert reason is not None
    assert "mlp.scale has the experts' width too" in reason

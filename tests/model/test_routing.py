"""What has a part for each expert is found, and what cannot lose experts says why."""

import pytest
import torch

from benchmarks.families.configs import EXPERTS, LATENT, Tiny
from ptl_fast.model.families import find_family
from ptl_fast.model.layers import on_meta
from ptl_fast.model.routing import find_routed
from support.mixtures import make_mixture


def test_the_router_and_its_biases_follow_the_experts() -> None:
    model = make_mixture("gpt_oss")
    first, *_ = find_routed(model, "model.layers")
    assert first.stack == "model.layers.0.mlp.experts"
    names = [name.removeprefix("model.layers.0.mlp.") for name in first.tensors]
    experts = ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"]
    assert set(names) == {f"experts.{each}" for each in experts} | {"router.weight", "router.bias"}
    assert [name.rpartition(".")[2] for name in first.router] == ["weight", "bias"]
    assert set(first.tensors.values()) == {0}


def test_a_buffer_of_the_choice_follows_too_and_dense_layers_have_none() -> None:
    model = on_meta(make_mixture("deepseek_v3").config)
    mixtures = find_routed(model, "model.layers")
    assert [routed.stack for routed in mixtures] == [
        f"model.layers.{layer}.mlp.experts" for layer in (1, 2)
    ]
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in mixtures[0].router


@pytest.mark.parametrize(
    ("tiny", "reason"),
    [
        pytest.param(
            Tiny(model_type="zaya", settings={**EXPERTS, "num_experts_per_tok": 1}),
            r"has shape \(5, 256\) with 4 experts and \(9, 256\) with 8",
            id="a router with one output more",
        ),
        pytest.param(
            Tiny(model_type="deepseek_v4", settings=EXPERTS),
            "tid2eid of layer 0 may have experts' numbers in it",
            id="a table of experts by token",
        ),
    ],
)
def test_what_cannot_follow_is_named(tiny: Tiny, reason: str) -> None:
    model = on_meta(tiny.config())
    family = find_family(model, needs_neurons=False)
    with pytest.raises(ValueError, match=reason):
        find_routed(model, family.layers)


def test_a_scale_of_each_expert_that_the_config_does_not_reach_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_mixture("mixtral")
    # as a type could have it that fixes the number in its code
    experts = type(model.model.layers[0].mlp.experts)
    original = experts.__init__

    def build(self: torch.nn.Module, config: object) -> None:
        original(self, config)
        self.register_buffer("scale", torch.ones(4))

    monkeypatch.setattr(experts, "__init__", build)
    with pytest.raises(ValueError, match=r"how many experts model.layers.0.mlp.experts.scale has"):
        find_routed(on_meta(model.config), "model.layers")


def test_groups_of_latent_types_are_read() -> None:
    from ptl_fast.model.widths import expert_limits

    config = Tiny(model_type="deepseek_v3", settings={**LATENT, **EXPERTS, "n_group": 2}).config()
    limits = expert_limits(config)
    assert (limits.number, limits.active, limits.groups, limits.fewest) == (4, 2, 2, 4)

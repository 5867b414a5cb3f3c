"""Two models without weights show what depends on the width, and what on a layer's place."""

import pytest
from torch import nn

from ptl_fast.model import skeleton
from ptl_fast.model.skeleton import Skeleton
from support.configs import tiny_config


def test_a_skeleton_takes_no_memory_and_leaves_the_config_alone() -> None:
    config = tiny_config("qwen2")
    before = config.to_dict()
    model = skeleton.build(config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert config.to_dict() == before
    assert skeleton.model_class(config) is type(model)


@pytest.mark.parametrize(
    ("model_type", "inputs", "others"),
    [
        ("llama", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], ["mlp.down_proj.weight"]),
        ("glm4", ["mlp.gate_up_proj.weight"], ["mlp.down_proj.weight"]),
        ("gpt2", ["mlp.c_fc.weight"], ["mlp.c_fc.bias", "mlp.c_proj.weight"]),
        ("bitnet", None, ["mlp.ffn_sub_norm.weight"]),
    ],
)
def test_what_has_the_width(model_type: str, inputs: list[str] | None, others: list[str]) -> None:
    look = Skeleton(tiny_config(model_type))
    found = look.of_width[2]
    assert len(look.layers) == len(look.of_width) == 4
    names = {each.name for each in found}
    assert names >= set(others)
    if inputs is not None:
        assert [each.name for each in found if each.is_input] == inputs
        assert names == {*inputs, *others}
    assert all(each.is_linear for each in found if each.is_matrix)


def test_layers_are_compared_by_structure_and_by_value() -> None:
    layers = Skeleton(tiny_config("diffllama")).layers
    assert skeleton.different_structure(layers[0], layers[1]) is None
    assert "self_attn.lambda_init is 0.2" in str(skeleton.different_value(layers[0], layers[1]))
    layers = Skeleton(tiny_config("llama")).layers
    assert skeleton.different_value(layers[0], layers[3]) is None, "the place itself is none"
    uneven = Skeleton(tiny_config("llama")).layers
    uneven[1].mlp.down_proj = nn.Linear(40, 64, device="meta")
    found = skeleton.different_structure(uneven[0], uneven[1])
    assert found is not None
    assert "mlp.down_proj" in found


def test_a_model_of_one_layer_cannot_lose_it() -> None:
    assert Skeleton(tiny_config("llama", num_hidden_layers=1)).without_first_layer is None

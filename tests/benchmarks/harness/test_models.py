"""Models of known shapes with random weights."""

import pytest
import torch

from benchmarks.harness.models import SHAPES, random_model, resized, shape_config, tiny_twin
from benchmarks.inference.model_size import ModelSize
from benchmarks.inference.operations import prefill_operations
from support.models import FAMILIES, make_model


def test_width_above_the_dense_one_is_refused() -> None:
    with pytest.raises(ValueError, match="--width 257 is outside 1 to 256"):
        resized(shape_config("tiny"), 257, None)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    published = {
        "llama3-8b": 8_030_261_248,
        "gemma2-9b": 9_241_705_984,
        "qwen2.5-7b": 7_615_616_512,
        "tiny": 188_736,
    }
    assert (
        ModelSize(shape_config(name), torch.bfloat16).at_context_0["num_parameters"]
        == published[name]
    )
    assert resized(shape_config(name), *SHAPES[name][2:]).intermediate_size % 128 == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_twin_has_the_same_operations_and_next_to_no_arithmetic(family: str) -> None:
    model = make_model(family)
    twin = random_model(tiny_twin(model.config), "cpu", torch.float32)
    operations, of_twin = (prefill_operations(each, 1, 16) for each in (model, twin))
    assert [operation.kind for operation in of_twin] == [operation.kind for operation in operations]
    assert sum(each.flops for each in of_twin) < sum(each.flops for each in operations)

"""Operations that are counted as they run: their FLOPs and bytes are those of the formulas."""

import pytest
from torch import nn

from benchmarks.inference.model_size import ModelSize
from benchmarks.inference.operations import decode_operations, prefill_operations
from support.benchmarks import tiny_model
from support.models import FAMILIES, make_model

BATCH, LENGTH = 3, 16
# inside the sliding window of the tests' models, beyond which a step sees only the window
SHORT = 7


@pytest.mark.parametrize("family", FAMILIES)
def test_counted_flops_are_those_of_flops_py(family: str) -> None:
    """SDPA computes the full square or its half; both count it whole, and so every token sees all
    LENGTH.
    """
    model = make_model(family)
    size = ModelSize(model.config, model.dtype)
    head = 2 * model.config.hidden_size * model.config.vocab_size
    every_token = size.decode(BATCH * LENGTH, LENGTH)["flops"]
    counted = sum(operation.flops for operation in prefill_operations(model, BATCH, LENGTH))
    assert counted == every_token - (LENGTH - 1) * BATCH * head  # only the last position has logits
    step = decode_operations(model, BATCH, SHORT - 1)
    assert sum(operation.flops for operation in step) == size.decode(BATCH, SHORT)["flops"]


def test_a_decode_step_reads_every_linear_weight_once() -> None:
    model = make_model("llama", intermediate_size=512, hidden_size=256, head_dim=64)
    weights = sum(
        module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear)
    )
    read = sum(
        operation.num_bytes
        for operation in decode_operations(model, 1, 4)
        if operation.kind == "gemm"
    )
    assert weights < read < 1.05 * weights


def test_counted_products_have_the_projections_sizes() -> None:
    shapes = {
        operation.shape
        for operation in prefill_operations(tiny_model(), 2, 8)
        if operation.kind == "gemm"
    }
    assert shapes >= {(16, 64, 64), (16, 64, 32), (16, 64, 256), (16, 256, 64), (1, 64, 512)}

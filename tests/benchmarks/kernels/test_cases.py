"""Which ops are timed on which shapes."""

import pytest

from benchmarks.kernels.cases import DTYPES, OPS, SHAPES, WEIGHT_SHAPES, cases


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_op_has_a_case_for_every_shape_and_dtype(device: str) -> None:
    for op, (_, has_tokens) in OPS.items():
        settings = [case.setting for case in cases(device, op=op)]
        sizes = {(shape.hidden_size, shape.width) for shape in SHAPES[device]}
        num_shapes = len(SHAPES[device]) if has_tokens else len(sizes) + len(WEIGHT_SHAPES[device])
        assert len(settings) == len(set(settings)) == num_shapes * len(DTYPES[device])
        assert all(bool(setting.shape.num_tokens) == has_tokens for setting in settings)

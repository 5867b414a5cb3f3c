"""Ours and every peer agree with the fp64 reference on a ragged shape, for every op of a layer."""

import pytest
import torch

from benchmarks.kernels.bench_kernels import check_all
from benchmarks.kernels.case import Setting, Shape
from benchmarks.kernels.cases import OPS

WITH_TOKENS = [op for op, (_, has_tokens) in OPS.items() if has_tokens and op != "dual_gemm"]
SKIPPED = {"torch.compile, same statistics": "slow"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("op", WITH_TOKENS)
def test_results_are_right_on_a_ragged_shape(op: str, dtype: torch.dtype) -> None:
    make_case, _ = OPS[op]
    case = make_case(op, Setting(Shape("ragged", 63, 40, 100, "gelu_tanh"), dtype, "cpu"))
    error, missing = check_all(case, case.make_inputs(), SKIPPED)
    assert error <= case.tolerance
    unavailable = {name for name in missing if "Liger" not in name and name not in SKIPPED}
    assert not unavailable


def test_least_traffic_reads_gate_and_up_and_writes_once() -> None:
    setting = Setting(Shape("ragged", 63, 40, 100), torch.bfloat16, "cpu")
    make_case, _ = OPS["gated_activation"]
    case = make_case("gated_activation", setting)
    assert case.num_bytes == 3 * 63 * 100 * 2
    inputs = case.make_inputs()
    assert inputs["copy_from"].nbytes + inputs["copy_to"].nbytes == case.num_bytes

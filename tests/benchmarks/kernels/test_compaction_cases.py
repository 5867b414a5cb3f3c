"""Ours and every peer leave exactly the rows and columns that stay."""

import pytest
import torch

from benchmarks.kernels import compaction_cases
from benchmarks.kernels.bench_kernels import check_all
from benchmarks.kernels.case import Setting, Shape
from benchmarks.kernels.cases import OPS

WITHOUT_TOKENS = [op for op, (_, has_tokens) in OPS.items() if not has_tokens]


@pytest.mark.parametrize("op", WITHOUT_TOKENS)
def test_results_are_exact_on_a_ragged_shape(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction_cases, "ROWS_BYTES", 50_000)
    make_case, _ = OPS[op]
    case = make_case(op, Setting(Shape("ragged", 0, 36, 101), torch.bfloat16, "cpu"))
    assert check_all(case, case.make_inputs(), {}) == (0.0, {})


def test_a_tenth_of_the_neurons_goes() -> None:
    kept_1K, order_K, num_moves = compaction_cases.plan_removal(200)
    assert kept_1K.shape == (1, 180)
    assert sorted(order_K.tolist()) == kept_1K[0].tolist()
    # only kept neurons of the last 20 places move
    assert num_moves == int((kept_1K >= 180).sum())

"""bench_kernels' cases on their first shape under pytest-benchmark: python -m pytest benchmarks
--benchmark-enable.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.harness.environment import dtype_name
from benchmarks.harness.results import not_measured
from benchmarks.kernels.bench_kernels import check, expected_results
from benchmarks.kernels.case import Case
from benchmarks.kernels.cases import SHAPES, cases
from benchmarks.kernels.peers import Contender, Tensors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def contenders() -> Iterator[Any]:
    """Our call and each peer's, for every op and dtype."""
    first = SHAPES[DEVICE][0]
    for case in cases(DEVICE):
        if case.setting.shape not in (first, replace(first, num_tokens=0)):
            continue
        for name, contender in {"ours": case.ours, **case.peers}.items():
            # compiling takes longer than all the rest; bench_kernels measures it
            if name.startswith("torch.compile"):
                continue
            missing = case.ours.missing or contender.missing
            mark = pytest.mark.skipif(bool(missing), reason=not_measured(missing or ""))
            yield pytest.param(
                case,
                name,
                contender,
                marks=mark,
                id=f"{case.op}-{dtype_name(case.setting.dtype)}-{name}",
            )


@pytest.mark.parametrize(("case", "name", "contender"), contenders())
def test_speed(benchmark: Any, case: Case, name: str, contender: Contender) -> None:
    benchmark.group = f"{case.op} {case.setting.shape} {dtype_name(case.setting.dtype)} {DEVICE}"
    benchmark.extra_info["contender"] = name

    def run(prepared: Tensors) -> Tensors:
        results = contender.run(prepared)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return results

    with torch.no_grad():
        inputs = case.make_inputs()
        check(case, name, run(contender.prepare(inputs)), expected_results(case, inputs))
        benchmark.pedantic(
            run, setup=lambda: ((contender.prepare(inputs),), {}), rounds=20, warmup_rounds=3
        )

"""What tests of benchmarks share: a small model, rates that are known, and rows of a comparison of
methods.
"""

from typing import Any

import torch

from benchmarks.harness.models import random_model, resized, shape_config
from benchmarks.harness.stopwatch import Stopwatch
from benchmarks.inference.roofline import Rates


def tiny_model(width: int | None = None) -> Any:
    """The shape "tiny" with random weights, at this FFN width."""
    return random_model(resized(shape_config("tiny"), width, None), "cpu", torch.float32)


def known_rates() -> Rates:
    """1e9 FLOP/s in the up projection of 4 rows, 2e9 in attention of one shape, 1e7 byte/s where
    the output is a mebibyte.
    """
    rates = Rates(tiny_model(), Stopwatch("cpu", 1 << 16))
    rates.measured.update(
        {
            "gemm 4 x 64 x 256, FLOP/s": 1e9,
            "gemm 4 x 64 x 64, FLOP/s": 5e8,
            "attention 1 x 4 heads of 16, 8 of 8, 2 key heads, FLOP/s": 2e9,
            f"elementwise of {1 << 20} bytes, byte/s": 1e7,
        }
    )
    return rates


def fake_cell(
    seed: int, accuracy: float, num_parameters: int = 600, **settings: Any
) -> dict[str, Any]:
    sizes = {
        "num_parameters": num_parameters,
        "num_layers": 4,
        "width": 400,
        "flops_per_token": 1000,
    }
    evaluation = {"sums": {"exact_match": accuracy, "other": 0.1}}
    rounds = [
        {
            **sizes,
            "round": number,
            "kind": "neurons",
            "recovery_tokens": 500 * number,
            "seconds": {"calibrate": 1.0, "recover": 10.0 * number},
            "eval_pruned": {"sums": {"exact_match": accuracy / 2, "other": 0.1}},
            "eval": evaluation,
        }
        for number in (1, 2)
    ]
    dense = {
        "num_parameters": 1000,
        "num_layers": 4,
        "width": 800,
        "flops_per_token": 2000,
        "eval": {"sums": {"exact_match": 1.0}},
    }
    return {
        "settings": {"seed": seed, **settings},
        "status": "finished",
        "commits": ["abc"],
        "dense": dense,
        "rounds": rounds,
        "final": {**sizes, "eval": evaluation},
    }


def comparison_results() -> dict[str, Any]:
    """PTL at 90 and 92, another method at 80 and 84 with a third seed that failed, each in every
    study that has a figure.
    """
    cells = {
        "ptl-0": fake_cell(0, 0.90),
        "ptl-1": fake_cell(1, 0.92),
        "other-0": fake_cell(0, 0.80, num_parameters=700),
        "other-1": fake_cell(1, 0.84, num_parameters=700),
        "other-2": {"settings": {"seed": 2}, "status": "failed", "error": "error: it broke"},
    }
    ptl, other = ["ptl-0", "ptl-1"], ["other-0", "other-1", "other-2"]
    points = [{"study": "rounds", "method": "PTL", "keep": 0.5, "x": None, "cells": ptl}]
    for study, xs in (
        ("methods", [None]),
        ("budget", [1000, 2000]),
        ("unseen", [1000, 2000]),
        ("steps", [1, 2]),
    ):
        points += [
            {"study": study, "method": method, "keep": 0.5, "x": x, "cells": names}
            for x in xs
            for method, names in (("PTL", ptl), ("other", other))
        ]
    setup = {
        "model": "ptl-demo",
        "data": "ptl-demo",
        "eval_tasks": ["sums"],
        "seeds": [0, 1, 2],
        "base": {},
    }
    return {
        "environment": {"device": "a CPU", "torch": "2.13", "jobs": 2},
        "setup": setup,
        "points": points,
        "cells": cells,
    }


# The table of the study "methods" of these results.
COMPARISON_TABLE = """\
| size | method | parameters | layers x width | FLOPs/token | speedup by FLOPs | rounds | \
recovery tokens | recovery, s | sums \
| PTL ahead on sums: by more than the spread? |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|
| dense |  | 100.0% |  | 100.0% | 1.00x |  |  |  | 100.0 |  |
| keep 0.5 | PTL | 60.0% | 4 x 400 | 50.0% | 2.00x | 2 | 1,500 | 30 | 91.0 (90.0 to 92.0) |  |
| keep 0.5 | other | 70.0% | 4 x 400 | 50.0% | 2.00x | 2 | 1,500 | 30 | 82.0 (80.0 to 84.0), 2 \
of 3 seeds | +9.0: yes |

Mean over the seeds, with the lowest and the highest in brackets. *By more than the spread*: the \
difference of the means is larger \
than the larger of the two ranges (highest minus lowest over the seeds).

Not the same size, but as near as whole layers or slices come: other at keep 0.5: 70.0% where \
PTL has 60.0%.

Missing:

- other at keep 0.5: failed (error: it broke), seed 2"""

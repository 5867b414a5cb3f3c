"""Time every op of ptl_kernels against its peers, in one run, after checking that all of them are
right.

    python -m benchmarks.kernels.bench_kernels --json benchmarks/results/kernels_NAME.json

Each sample times our call and every peer's, one after the other, in an order that rotates and on
inputs that rotate; a ratio is the median over the samples of peer time / our time, so above 1 ours
is faster. Where a result disagrees with the op's fp64 twin, the program stops instead of timing it.
Caches are flushed before each call; times are between events on CUDA, of --clock on a CPU.
"""

import argparse
import functools
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import clock
from benchmarks.harness.ceilings import ceilings
from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.markdown import head, line
from benchmarks.harness.results import MEASURED, not_measured, write_json
from benchmarks.harness.stopwatch import FLUSH_BYTES, Stopwatch, timed
from benchmarks.harness.turns import median_and_spread, rotated
from benchmarks.kernels.case import Case
from benchmarks.kernels.cases import DTYPES, OPS, cases
from benchmarks.kernels.peers import Contender, Tensors

COLUMNS = [
    "op",
    "shape",
    "dtype",
    "peer",
    "ours ms",
    "peer ms",
    "peer / ours (p20 to p80)",
    "error",
    "GB/s",
    "of copy",
    "status",
]
NUM_INPUTS = 3  # sets of inputs, so that a call does not find its inputs in the caches
SECONDS_PER_CASE = 2.0
# at least so many that p20 and p80 mean something
FEWEST_SAMPLES, MOST_SAMPLES = 40, 50


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest |got - want| / (|want| + rms(want)); NaN where either has one, infinite where shapes
    differ.
    """
    if got.shape != want.shape:
        return math.inf
    want = want.double()
    # rms(want) is in the scale so that a value near zero does not make its rounding look large
    scale = want.abs() + want.square().mean().sqrt()
    difference = (got.to(want.device).double() - want).abs()
    # zero over zero, where both are all zeros, is no error
    return float(torch.where(difference == 0, 0.0, difference / scale).max())


def expected_results(case: Case, inputs: Tensors) -> Tensors:
    """The twin's results of the same inputs in fp64."""
    return case.twin(
        {
            name: tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in inputs.items()
        }
    )


def check(case: Case, name: str, results: Tensors, expected: Tensors) -> float:
    """Return the largest error of these results; stop the program if it is above the case's
    tolerance.
    """
    largest = 0.0
    # a peer has no statistics that it does not compute, and a ceiling no results at all
    for key in results.keys() & expected.keys():
        error = relative_error(results[key], expected[key])
        if not error <= case.tolerance:  # written so that NaN fails
            setting = (
                f"{case.setting.shape}, {dtype_name(case.setting.dtype)}, {case.setting.device}"
            )
            raise SystemExit(
                f"refusing to time {case.op} ({setting}): {key!r} of {name!r} has relative error"
                f" {error:.3g} against the fp64 twin, "
                f"above {case.tolerance:g}"
            )
        largest = max(largest, error)
    return largest


def check_all(case: Case, inputs: Tensors, skip: dict[str, str]) -> tuple[float, dict[str, str]]:
    """Run ours and every peer once and check the results.

    Returns our error, and for each peer that cannot be measured the reason. ``skip`` names peers to
    leave out, with reasons.
    """
    expected = expected_results(case, inputs)
    results = case.ours.run(case.ours.prepare(inputs))
    assert results.keys() <= expected.keys(), f"{case.op} has results that the twin lacks"
    error = check(case, "ours", results, expected)
    missing = {}
    for name, peer in case.peers.items():
        reason = peer.missing or skip.get(name)
        if reason is None:
            try:
                results = peer.run(peer.prepare(inputs))
            # torch.compile without a C++ compiler, or no memory for the peer's temporaries
            except RuntimeError as failure:
                reason = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            else:
                check(case, name, results, expected)
        if reason is not None:
            missing[name] = reason
    return error, missing


def sample(
    contenders: dict[str, Contender], inputs: list[Tensors], stopwatch: Stopwatch, quick: bool
) -> dict[str, list[float]]:
    """Times of every contender, in ms, from turns after one that warms up."""
    warm_up = functools.partial(time_turn, contenders, inputs, 0, stopwatch)
    _, seconds = timed(warm_up, clock.wall_seconds)
    fitting = int(SECONDS_PER_CASE / seconds)
    num_samples = 3 if quick else min(max(fitting, FEWEST_SAMPLES), MOST_SAMPLES)
    turns = [time_turn(contenders, inputs, turn + 1, stopwatch) for turn in range(num_samples)]
    return {name: [times[name] for times in turns] for name in contenders}


def time_turn(
    contenders: dict[str, Contender], inputs: list[Tensors], turn: int, stopwatch: Stopwatch
) -> dict[str, float]:
    """Time each contender once, in ms, every call on the next set of inputs."""
    times = {}
    for place, name in enumerate(rotated(list(contenders), turn)):
        num_calls = turn * len(contenders) + place  # those before this one, over all turns
        prepared = contenders[name].prepare(inputs[num_calls % len(inputs)])
        times[name] = stopwatch.time_ms(functools.partial(contenders[name].run, prepared))
    return times


def measure(
    case: Case, stopwatch: Stopwatch, copy_gbs: float, skip: dict[str, str], quick: bool
) -> list[dict[str, Any]]:
    """Check and time one case; one row a peer."""
    if case.ours.missing:
        return [make_row(case, peer, status=not_measured(case.ours.missing)) for peer in case.peers]
    inputs = [case.make_inputs() for _ in range(NUM_INPUTS)]
    error, missing = check_all(case, inputs[0], skip)
    contenders = {
        "ours": case.ours,
        **{name: peer for name, peer in case.peers.items() if name not in missing},
    }
    times = sample(contenders, inputs, stopwatch, quick)
    time_ms = statistics.median(times["ours"])
    gbs = case.num_bytes / time_ms / 1e6 if case.num_bytes else None
    # the same in the row of every peer
    ours = {
        "time_ms": time_ms,
        "max_rel_error": error,
        "gbs": gbs,
        "percent_of_copy": 100 * gbs / copy_gbs if gbs else None,
        "num_samples": len(times["ours"]),
    }
    rows = []
    for name in case.peers:
        if name in missing:
            rows.append(make_row(case, name, status=not_measured(missing[name])))
        else:
            rows.append(
                make_row(
                    case,
                    name,
                    status=MEASURED,
                    peer_ms=statistics.median(times[name]),
                    **ours,
                    **ratio(times, name),
                )
            )
    return rows


def ratio(times: dict[str, list[float]], peer: str) -> dict[str, float]:
    """Peer time / our time over the samples: median, p20 and p80."""
    ratios = [theirs / ours for theirs, ours in zip(times[peer], times["ours"], strict=True)]
    median, p20, p80 = median_and_spread(ratios)
    return {"ratio_to_peer": median, "ratio_p20": p20, "ratio_p80": p80}


def make_row(case: Case, peer: str, status: str, **numbers: Any) -> dict[str, Any]:
    """A row of the results; every number that is not given is None."""
    numbers_of_a_row = [
        "time_ms",
        "peer_ms",
        "ratio_to_peer",
        "ratio_p20",
        "ratio_p80",
        "max_rel_error",
        "gbs",
        "percent_of_copy",
        "num_samples",
    ]
    setting = case.setting
    columns = {
        "op": case.op,
        "shape": str(setting.shape),
        "dtype": dtype_name(setting.dtype),
        "device": setting.device,
        "peer": peer,
    }
    return {**columns, **{name: numbers.get(name) for name in numbers_of_a_row}, "status": status}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one small shape, three samples, no torch.compile: does it work?",
    )
    parser.add_argument("--json", type=Path, help="file for the results, written after every case")
    parser.add_argument("--op", choices=OPS, help="only this op")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    clock.choose(options.clock)
    device = (
        ("cuda" if torch.cuda.is_available() else "cpu")
        if options.device == "auto"
        else options.device
    )
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and torch sees no such device; use --device cpu")
    torch.manual_seed(0)
    stopwatch = Stopwatch(device, 1 << 20 if options.quick else FLUSH_BYTES[device])
    results: dict[str, Any] = {
        "environment": environment(device),
        "ceilings": ceilings(device, DTYPES[device], stopwatch, options.quick),
        "rows": [],
    }
    # compiling takes longer than the rest of a quick run
    skip = {"torch.compile, same statistics": "left out by --quick"} if options.quick else {}
    print(head(COLUMNS))
    # the case of the backward pass turns gradients on for itself
    with torch.no_grad():
        for case in cases(device, options.quick, options.op):
            rows = measure(case, stopwatch, results["ceilings"]["copy_gbs"], skip, options.quick)
            results["rows"] += rows
            print("\n".join(line(table_row(row)) for row in rows), flush=True)
            if options.json:
                write_json(options.json, results)


def table_row(row: dict[str, Any]) -> list[str]:
    """The cells of one row, by COLUMNS."""
    cells = [row["op"], row["shape"], row["dtype"], row["peer"]]
    if row["status"] == MEASURED:
        spread = f"{row['ratio_to_peer']:.2f} ({row['ratio_p20']:.2f} to {row['ratio_p80']:.2f})"
        cells += [
            f"{row['time_ms']:.3f}",
            f"{row['peer_ms']:.3f}",
            spread,
            f"{row['max_rel_error']:.1e}",
        ]
        cells += [f"{row['gbs']:.1f}", f"{row['percent_of_copy']:.0f}%"] if row["gbs"] else ["", ""]
    else:
        cells += [""] * 6
    return [*cells, row["status"]]


if __name__ == "__main__":
    main()

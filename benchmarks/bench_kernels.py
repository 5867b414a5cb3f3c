"""Time every op of ptl_kernels against its peers, in one run, after checking that all of them are right.

    python -m benchmarks.bench_kernels --json benchmarks/results/kernels_NAME.json

Each sample times our call and every peer's, one after the other, in an order that rotates and on inputs that rotate; a ratio is the
median over the samples of peer time / our time, so above 1 ours is faster. Where a result disagrees with the op's fp64 twin, the
program stops instead of timing it. Caches are flushed before each call; times are between events on CUDA, of --clock on CPU.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ptl_kernels import cpu
from torch import Tensor

from benchmarks import clock, nvml
from benchmarks.files import MEASURED, checked_out, write_text
from benchmarks.kernel_cases import DTYPES, OPS, Case, cases
from benchmarks.kernel_peers import Contender, Tensors

COLUMNS = ["op", "shape", "dtype", "peer", "ours ms", "peer ms", "peer / ours (p20 to p80)", "error", "GB/s", "of copy", "status"]

# Read before each call: more than the last cache of most devices. On CUDA it also lets the host run ahead of the device, so that
# the host's time to launch a first kernel stays outside.
FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
NUM_INPUTS = 3
SECONDS_PER_CASE = 2.0
FEWEST_SAMPLES, MOST_SAMPLES = 40, 50


class Stopwatch:
    """Times one call on a device whose caches hold something else, or what an untimed call before it left (``warm``)."""

    def __init__(self, device: str, flush_bytes: int) -> None:
        self.device = device
        self.flush = torch.ones(flush_bytes // 4, device=device)

    def time_ms(self, call: Callable[[], object], warm: bool = False) -> float:
        """Device time of one call on CUDA, the chosen clock's on CPU."""
        self.flush.sum()
        if warm:
            call()
        if self.device == "cpu":
            start = clock.now()
            call()
            return 1000 * (clock.now() - start)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest |got - want| / (|want| + rms(want)); NaN where either has one, infinite where shapes differ."""
    if got.shape != want.shape:
        return math.inf
    want = want.double()
    scale = want.abs() + want.square().mean().sqrt()
    difference = (got.to(want.device).double() - want).abs()
    return float(torch.where(difference == 0, 0.0, difference / scale).max())


def expected_results(case: Case, inputs: Tensors) -> Tensors:
    """The twin's results of the same inputs in fp64."""
    return case.twin({name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()})


def check(case: Case, name: str, results: Tensors, expected: Tensors) -> float:
    """Return the largest error of these results; stop the program if it is above the case's tolerance."""
    largest = 0.0
    for key in results.keys() & expected.keys():
        error = relative_error(results[key], expected[key])
        if not error <= case.tolerance:  # NaN must not pass
            place = f"{case.setting.shape}, {dtype_name(case.setting.dtype)}, {case.setting.device}"
            raise SystemExit(
                f"refusing to time {case.op} ({place}): {key!r} of {name!r} has relative error {error:.3g} against the fp64 twin, "
                f"above {case.tolerance:g}"
            )
        largest = max(largest, error)
    return largest


def check_all(case: Case, inputs: Tensors, skip: dict[str, str]) -> tuple[float, dict[str, str]]:
    """Run everyone once and check the results; return our error, and by name why a peer cannot be measured."""
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
            except RuntimeError as failure:  # torch.compile without a C++ compiler, or no memory for the peer's temporaries
                reason = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            else:
                check(case, name, results, expected)
        if reason is not None:
            missing[name] = reason
    return error, missing


def sample(contenders: dict[str, Contender], inputs: list[Tensors], stopwatch: Stopwatch, quick: bool) -> dict[str, list[float]]:
    """Interleaved times of every contender, in ms, after a round that warms up."""
    start = time.perf_counter()
    time_round(contenders, inputs, 0, stopwatch)
    fitting = int(SECONDS_PER_CASE / (time.perf_counter() - start))
    num_samples = 3 if quick else min(max(fitting, FEWEST_SAMPLES), MOST_SAMPLES)
    rounds = [time_round(contenders, inputs, number + 1, stopwatch) for number in range(num_samples)]
    return {name: [times[name] for times in rounds] for name in contenders}


def time_round(contenders: dict[str, Contender], inputs: list[Tensors], number: int, stopwatch: Stopwatch) -> dict[str, float]:
    """Time each contender once, in ms. Every round starts with another one, and every call gets the next set of inputs."""
    names = list(contenders)
    times = {}
    for place in range(len(names)):
        contender = contenders[names[(number + place) % len(names)]]
        prepared = contender.prepare(inputs[(number * len(names) + place) % len(inputs)])
        times[names[(number + place) % len(names)]] = stopwatch.time_ms(functools.partial(contender.run, prepared))
    return times


def measure(case: Case, stopwatch: Stopwatch, copy_gbs: float, skip: dict[str, str], quick: bool) -> list[dict[str, Any]]:
    """Check and time one case; one row a peer."""
    if case.ours.missing:
        return [make_row(case, peer, status=f"not measured: {case.ours.missing}") for peer in case.peers]
    inputs = [case.make_inputs() for _ in range(NUM_INPUTS)]
    error, missing = check_all(case, inputs[0], skip)
    contenders = {"ours": case.ours, **{name: peer for name, peer in case.peers.items() if name not in missing}}
    times = sample(contenders, inputs, stopwatch, quick)
    time_ms = statistics.median(times["ours"])
    gbs = case.num_bytes / time_ms / 1e6 if case.num_bytes else None
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
            rows.append(make_row(case, name, status=f"not measured: {missing[name]}"))
        else:
            rows.append(make_row(case, name, status=MEASURED, peer_ms=statistics.median(times[name]), **ours, **ratio(times, name)))
    return rows


def ratio(times: dict[str, list[float]], peer: str) -> dict[str, float]:
    """Peer time / our time over the samples: median, p20 and p80."""
    ratios = [theirs / ours for theirs, ours in zip(times[peer], times["ours"], strict=True)]
    quintiles = statistics.quantiles(ratios, n=5, method="inclusive")
    return {"ratio_to_peer": statistics.median(ratios), "ratio_p20": quintiles[0], "ratio_p80": quintiles[-1]}


def make_row(case: Case, peer: str, status: str, **numbers: Any) -> dict[str, Any]:
    """A row of the results; every number that is not given is None."""
    names = [
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
    place = {"op": case.op, "shape": str(setting.shape), "dtype": dtype_name(setting.dtype), "device": setting.device, "peer": peer}
    return {**place, **{name: numbers.get(name) for name in names}, "status": status}


def dtype_name(dtype: torch.dtype) -> str:
    """bfloat16 and the like."""
    return str(dtype).removeprefix("torch.")


def ceilings(device: str, stopwatch: Stopwatch, quick: bool) -> dict[str, Any]:
    """What the device reaches: a copy in GB/s (read and written bytes both count), a square GEMM in TFLOP/s by dtype."""
    num_elements = (4 if quick else 64 if device == "cpu" else 512) << 20
    numbers, copied = torch.randn(num_elements, device=device), torch.empty(num_elements, device=device).fill_(1.0)
    copy_ms = statistics.median(stopwatch.time_ms(lambda: copied.copy_(numbers)) for _ in range(10))
    size = 256 if quick else 1024 if device == "cpu" else 8192
    tflops = {}
    for dtype in DTYPES[device]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        left @ right
        gemm_ms = statistics.median(stopwatch.time_ms(lambda: left @ right) for _ in range(10))  # noqa: B023
        tflops[dtype_name(dtype)] = 2 * size**3 / gemm_ms / 1e9
    return {"copy_gbs": 2 * numbers.nbytes / copy_ms / 1e6, "gemm_tflops": tflops}


def environment(device: str) -> dict[str, Any]:
    """The device and the versions that the numbers belong to."""
    head, changed = checked_out()
    return {
        "device_type": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "clock": clock.chosen(),
        # glibc's settings: without any, it hands large blocks back to the system, and each new activation is paged in anew
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "cpu_instruction_set": cpu.instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": nvml.driver_version() if device == "cuda" else None,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "liger_kernel": _version("liger-kernel"),
        "commit": head,
        "dirty": changed,
    }


def processor_name() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small shape, three samples, no torch.compile: does it work?")
    parser.add_argument("--json", type=Path, help="file for the results, written after every case")
    parser.add_argument("--op", choices=OPS, help="only this op")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    clock.choose(options.clock)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and torch sees no such device; use --device cpu")
    torch.manual_seed(0)
    stopwatch = Stopwatch(device, 1 << 20 if options.quick else FLUSH_BYTES[device])
    results: dict[str, Any] = {
        "environment": environment(device),
        "ceilings": ceilings(device, stopwatch, options.quick),
        "rows": [],
    }
    skip = {"torch.compile, same statistics": "left out by --quick"} if options.quick else {}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with torch.no_grad():
        for case in cases(device, options.quick, options.op):
            rows = measure(case, stopwatch, results["ceilings"]["copy_gbs"], skip, options.quick)
            results["rows"] += rows
            print("\n".join(map(_table_row, rows)), flush=True)
            if options.json:
                write_text(options.json, json.dumps(results, indent=1) + "\n")


def _table_row(row: dict[str, Any]) -> str:
    cells = [row["op"], row["shape"], row["dtype"], row["peer"]]
    if row["status"] == MEASURED:
        spread = f"{row['ratio_to_peer']:.2f} ({row['ratio_p20']:.2f} to {row['ratio_p80']:.2f})"
        cells += [f"{row['time_ms']:.3f}", f"{row['peer_ms']:.3f}", spread, f"{row['max_rel_error']:.1e}"]
        cells += [f"{row['gbs']:.1f}", f"{row['percent_of_copy']:.0f}%"] if row["gbs"] else ["", ""]
    else:
        cells += [""] * 6
    return f"| {' | '.join([*cells, row['status']])} |"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

"""Removing a tenth of every FFN's neurons from a whole model: ours against other ways, in one run.

    python -m benchmarks.compaction.bench_compaction [--model DIR | --shape NAME] --json FILE

- ours: ptl_fast.pruning.compact, planning on the host included
- three x[idx], three index_select: each matrix by itself; the kept neurons' indices are made as
  ours are
- torch-pruning, functions: its pruning functions on each linear layer (PyPI's torch-pruning, when
  installed)
- torch-pruning, graph: the same through its dependency graph, by which its users find the layers
  that must be pruned together
- authors' way: as the code of arXiv 2602.04919 does it, written anew from a description of that
  code: lists of indices that are scanned for every neuron, and new layers
- authors' way, with files: and the model is loaded and saved three times a round

A sample times every way once, in an order that rotates, on a copy of the model that is not timed;
the median of the ratios counts. First each way's matrices are compared with the rows and columns
that should stay, and a wrong one ends the program. GB/s are the bytes that removal must at least
move (rows that fill holes, and columns that stay) over a way's time. The peak is the most memory
that was allocated beside the model that was given.
"""

import argparse
import copy
import functools
import itertools
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.compaction.removals import (
    REMOVALS,
    WITH_FILES,
    KeptNeurons,
    Removal,
    feed_forwards_of,
    why_not_measured,
)
from benchmarks.harness import clock
from benchmarks.harness.environment import dtype_name, environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.models import SHAPES, random_model, shape_config
from benchmarks.harness.results import MEASURED, errors_in_one_line, not_measured, write_json
from benchmarks.harness.stopwatch import timed
from benchmarks.harness.turns import median_and_spread, rotated
from ptl_fast.model import loading
from ptl_kernels import hole_filling

REMOVED = 0.1  # fraction of each FFN's neurons
# The way with files takes seconds a sample: once it has used up this much, it has two samples.
MOST_FILE_MS = 10_000
COLUMNS = ["way", "ms", "time / ours (p20 to p80)", "GB/s", "peak MiB"]


def measure(model: PreTrainedModel, num_samples: int, files: bool = True) -> list[dict[str, Any]]:
    """A row for each way, with numbers or with the reason why there are none."""
    width, num_layers = model.config.intermediate_size, model.config.num_hidden_layers
    num_kept = width - round(REMOVED * width)
    kept = [torch.randperm(width)[:num_kept].sort().values.tolist() for _ in range(num_layers)]
    reasons = {name: why_not_measured(name, files) for name in REMOVALS}
    removals = {name: remove for name, remove in REMOVALS.items() if reasons[name] is None}
    check(model, removals, kept)
    times_ms = time_in_turns(removals, model, kept, num_samples)
    rows: list[dict[str, Any]] = []
    for name, reason in reasons.items():
        if reason is not None:
            rows.append({"way": name, "status": not_measured(reason)})
            continue
        time_ms = statistics.median(times_ms[name])
        # the way with files may have fewer samples, the first ones
        ratios = [
            other / mine for other, mine in zip(times_ms[name], times_ms["ours"], strict=False)
        ]
        ratio, p20, p80 = median_and_spread(ratios)
        rows.append(
            {
                "way": name,
                "status": MEASURED,
                "time_ms": time_ms,
                "gbs": least_bytes(model, kept) / time_ms / 1e6,
                "peak_bytes": peak_bytes(removals[name], model, kept),
                "num_samples": len(times_ms[name]),
                "ratio": ratio,
                "ratio_p20": p20,
                "ratio_p80": p80,
            }
        )
    return rows


def time_in_turns(
    removals: dict[str, Removal], model: PreTrainedModel, kept: KeptNeurons, num_samples: int
) -> dict[str, list[float]]:
    """Milliseconds of every sample, by way."""
    times_ms: dict[str, list[float]] = {name: [] for name in removals}
    now = functools.partial(clock.now, model.device)
    for sample in range(num_samples):
        for name in rotated(list(removals), sample):
            if name == WITH_FILES and sample > 1 and sum(times_ms[name]) > MOST_FILE_MS:
                continue
            # removal changes what it is given, so every sample has a copy of its own
            victim = copy.deepcopy(model)
            _, seconds = timed(functools.partial(removals[name], victim, kept), now)
            times_ms[name].append(1e3 * seconds)
    return times_ms


@torch.no_grad()
def check(model: PreTrainedModel, removals: dict[str, Removal], kept: KeptNeurons) -> None:
    """Stop the program where a way's matrices are not exactly those of the neurons that stay, in
    the way's order.
    """
    filled_LK = hole_filling(torch.tensor(kept), model.config.intermediate_size).order_LK
    for name, remove in removals.items():
        smaller = remove(copy.deepcopy(model), kept)
        layers = zip(feed_forwards_of(smaller), feed_forwards_of(model), strict=True)
        for layer, (after, before) in enumerate(layers):
            # ours moves neurons into the holes; every other way keeps them in ascending order
            order_K = filled_LK[layer] if name == "ours" else torch.tensor(kept[layer])
            order_K = order_K.to(model.device)
            pairs = [
                (new.weight, old.weight[order_K])
                for new, old in zip(after.inputs, before.inputs, strict=True)
            ]
            pairs.append((after.down.weight, before.down.weight[:, order_K]))
            if not all(torch.equal(got, want) for got, want in pairs):
                raise SystemExit(
                    f"refusing to time {name!r}: layer {layer} does not hold the neurons that stay"
                )


def least_bytes(model: PreTrainedModel, kept: KeptNeurons) -> int:
    """Bytes that must be read and written: rows of gate and up that fill holes, and the columns of
    down that stay.
    """
    num_moves = sum(hole_filling(torch.tensor(kept), model.config.intermediate_size).num_moves)
    row_bytes = model.config.hidden_size * model.dtype.itemsize
    return 2 * row_bytes * (2 * num_moves + sum(map(len, kept)))


def peak_bytes(remove: Removal, model: PreTrainedModel, kept: KeptNeurons) -> int:
    """The most memory that is allocated during a removal, beside the model that it was given."""
    if model.device.type == "cuda":
        victim = copy.deepcopy(model)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        remove(victim, kept)
        return torch.cuda.max_memory_allocated() - before
    # PyTorch's CPU allocator keeps no peak; the profiler records every allocation and release
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        # copied in here: the profiler sees a release only of memory whose allocation it saw
        victim = copy.deepcopy(model)
        with torch.profiler.record_function("removal"):
            remove(victim, kept)
    recorded = profile.profiler.kineto_results.events()
    start = next(event.start_ns() for event in recorded if event.name() == "removal")
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]"
    )
    allocated = itertools.accumulate(num_bytes for when, num_bytes in changes if when >= start)
    return max(0, *allocated)


def table_row(row: dict[str, Any]) -> list[str]:
    """The cells of one row, by COLUMNS."""
    if row["status"] != MEASURED:
        return [row["way"], *[row["status"]] * (len(COLUMNS) - 1)]
    spread = f"{row['ratio']:.2f} ({row['ratio_p20']:.2f} to {row['ratio_p80']:.2f})"
    return [
        row["way"],
        f"{row['time_ms']:.2f}",
        spread,
        f"{row['gbs']:.2f}",
        f"{row['peak_bytes'] / 2**20:.1f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name (default: the bundled model)")
    parser.add_argument(
        "--shape",
        choices=list(SHAPES),
        help="instead of --model: a known model with random weights",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--samples", type=int, default=11, help="at least 2")
    parser.add_argument(
        "--no-files", action="store_true", help="leave out the way that saves and loads the model"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    if options.samples < 2:
        parser.error("--samples must be at least 2: ratios have a spread")
    torch.manual_seed(0)
    with errors_in_one_line():
        clock.choose(options.clock)
        device = loading.resolve_device(options.device)
        config = (
            shape_config(options.shape)
            if options.shape
            else loading.load_config(options.model or loading.DEMO)
        )
    # the weights' values do not matter to the time, and random ones need no download
    model = random_model(config, device, torch.float32 if device == "cpu" else torch.bfloat16)
    results: dict[str, Any] = {
        "environment": environment(device.partition(":")[0]),
        "model": options.shape or Path(options.model or loading.DEMO).name,
        "dtype": dtype_name(model.dtype),
        "rows": measure(model, options.samples, not options.no_files),
    }
    print(to_markdown([COLUMNS, *map(table_row, results["rows"])]))
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()

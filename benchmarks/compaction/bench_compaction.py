"""Removing a tenth of every FFN's neurons from a whole model: ours against other ways, in one run.

    python -m benchmarks.compaction.bench_compaction [--model DIR | --shape NAME] --json FILE

- ours: ptl_fast.pruning.compact, planning on the host included
- three x[idx], three index_select: each matrix by itself; the kept neurons' indices are made as
  ours are
- torch-pruning, functions: its pruning functions on each linear layer (PyPI's torch-pruning, when
  installed)
- torch-pruning, graph: the same through its dependency graph, which is how its users find what
  belongs together
- authors' way: as the code of arXiv 2602.04919 goes about it, written anew from its description:
  lists of indices that are scanned for every neuron, and new layers
- authors' way, with files: and the model is loaded and saved three times a round

A sample times every way once, in an order that rotates, on a copy of the model that is not timed;
the median of the ratios counts. First each way's matrices are compared with the rows and columns
that should stay, and a wrong one ends the program. GB/s are the bytes that removal must at least
move (rows that fill holes, and columns that stay) over a way's time. The peak is what was held
beside the model that was given.
"""

import argparse
import copy
import functools
import importlib.util
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.harness import clock
from benchmarks.harness.environment import environment
from benchmarks.harness.models import SHAPES, random_model, shape_config
from benchmarks.harness.results import MEASURED, told_in_one_line, write_text
from ptl_fast.model import loading
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.pruning import compact
from ptl_fast.pruning.plan import PruningPlan
from ptl_kernels import GatedFfn, hole_filling

REMOVED = 0.1
WITH_FILES, MOST_FILE_MS = (
    "authors' way, with files",
    10_000,
)  # no more samples of it afterwards, but two
Kept = list[list[int]]
Way = Callable[[PreTrainedModel, Kept], PreTrainedModel]


def ours(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """In place by hole filling."""
    plan = PruningPlan(
        round=1,
        kind="neurons",
        scorer="random",
        width=len(kept[0]),
        num_layers=len(kept),
        kept_neurons=kept,
        dropped_layers=[],
        num_rescued=0,
        layer_scores=None,
    )
    compact.compact_(model, find_family(model), plan)
    return model


@torch.no_grad()
def by_indexing(model: PreTrainedModel, kept: Kept, select: bool) -> PreTrainedModel:
    """Three new matrices a layer, by x[idx] or by index_select, which is the faster one on a CPU in
    float32.
    """
    ffns = _ffns(model)
    for ffn, order_K in zip(ffns, compact.kept_indices(kept).to(model.device), strict=True):
        for linear in ffn.inputs:
            weight = linear.weight
            linear.weight = nn.Parameter(
                weight.index_select(0, order_K) if select else weight[order_K]
            )
        weight = ffn.down.weight
        ffn.down.weight = nn.Parameter(
            weight.index_select(1, order_K) if select else weight[:, order_K]
        )
    return _resized(model, ffns, kept)


@torch.enable_grad()  # the graph is that of autograd
def by_torch_pruning(model: PreTrainedModel, kept: Kept, graph: bool) -> PreTrainedModel:
    """torch-pruning's functions, by themselves or found by its dependency graph."""
    import torch_pruning

    width = model.config.intermediate_size
    if graph:
        example = {
            "input_ids": torch.ones(1, 8, dtype=torch.int64, device=model.device),
            "use_cache": False,
        }
        dependencies = torch_pruning.DependencyGraph().build_dependency(
            model, example_inputs=example
        )
    ffns = _ffns(model)
    for ffn, indices in zip(ffns, kept, strict=True):
        removed = sorted(set(range(width)) - set(indices))
        if graph:
            dependencies.get_pruning_group(
                ffn.inputs[0], torch_pruning.prune_linear_out_channels, idxs=removed
            ).prune()
            continue
        for linear in ffn.inputs:
            torch_pruning.prune_linear_out_channels(linear, removed)
        torch_pruning.prune_linear_in_channels(ffn.down, removed)
    return _resized(model, ffns, kept)


@torch.no_grad()
def by_scanning_lists(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """For each matrix, every neuron is looked for in the list of those that go, and a new layer
    takes the rest.
    """
    width = model.config.intermediate_size
    ffns = _ffns(model)
    for ffn, indices in zip(ffns, kept, strict=True):
        removed = sorted(set(range(width)) - set(indices))
        for linear, dim in [*((linear, 0) for linear in ffn.inputs), (ffn.down, 1)]:
            stays = [index for index in range(width) if index not in removed]
            weight = linear.weight.index_select(dim, torch.tensor(stays, device=model.device))
            fresh = nn.Linear(
                weight.shape[1],
                weight.shape[0],
                bias=False,
                device=weight.device,
                dtype=weight.dtype,
            )
            fresh.weight.copy_(weight)
            linear.weight = fresh.weight
    return _resized(model, ffns, kept)


def with_files(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """Three times saved and loaded, and pruned in between."""
    with tempfile.TemporaryDirectory() as folder:
        for time in range(3):
            if time == 1:
                model = by_scanning_lists(model, kept)
            model.save_pretrained(folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
            model = loaded.to(model.device)
    return model.eval()


WAYS: dict[str, Way] = {
    "ours": ours,
    "three x[idx]": functools.partial(by_indexing, select=False),
    "three index_select": functools.partial(by_indexing, select=True),
    "torch-pruning, functions": functools.partial(by_torch_pruning, graph=False),
    "torch-pruning, graph": functools.partial(by_torch_pruning, graph=True),
    "authors' way": by_scanning_lists,
    WITH_FILES: with_files,
}


def why_not(name: str, files: bool) -> str | None:
    """Why a way cannot be measured; None if it can."""
    if name.startswith("torch-pruning") and importlib.util.find_spec("torch_pruning") is None:
        return "torch-pruning is not installed"
    return "left out by --no-files" if name == WITH_FILES and not files else None


def measure(model: PreTrainedModel, num_samples: int, files: bool = True) -> list[dict[str, Any]]:
    """A row for each way, with numbers or with the reason why there are none."""
    width, num_layers = model.config.intermediate_size, model.config.num_hidden_layers
    num_kept = width - round(REMOVED * width)
    kept = [torch.randperm(width)[:num_kept].sort().values.tolist() for _ in range(num_layers)]
    missing = {name: reason for name in WAYS if (reason := why_not(name, files)) is not None}
    ways = {name: way for name, way in WAYS.items() if name not in missing}
    check(model, ways, kept)
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for sample in range(num_samples):
        for name in names[sample % len(names) :] + names[: sample % len(names)]:
            if name == WITH_FILES and sample > 1 and sum(times[name]) > MOST_FILE_MS:
                continue
            victim = copy.deepcopy(model)
            start = clock.now(model.device)
            ways[name](victim, kept)
            times[name].append(1e3 * (clock.now(model.device) - start))
    rows: list[dict[str, Any]] = []
    for name in WAYS:
        if name not in ways:
            rows.append({"way": name, "status": f"not measured: {missing[name]}"})
            continue
        time_ms = statistics.median(times[name])
        peak = peak_bytes(ways[name], model, kept)
        row: dict[str, Any] = {
            "way": name,
            "status": MEASURED,
            "time_ms": time_ms,
            "gbs": least_bytes(model, kept) / time_ms / 1e6,
        }
        rows.append(
            {
                **row,
                "peak_bytes": peak,
                "num_samples": len(times[name]),
                **_ratios(times[name], times["ours"]),
            }
        )
    return rows


@torch.no_grad()
def check(model: PreTrainedModel, ways: dict[str, Way], kept: Kept) -> None:
    """Stop the program where a way's matrices are not exactly those of the neurons that stay, in
    the way's order.
    """
    filled = hole_filling(torch.tensor(kept), model.config.intermediate_size).order_LK
    for name, way in ways.items():
        smaller = way(copy.deepcopy(model), kept)
        for layer, (after, before) in enumerate(zip(_ffns(smaller), _ffns(model), strict=True)):
            order_K = (filled[layer] if name == "ours" else torch.tensor(kept[layer])).to(
                model.device
            )
            pairs = [
                (new.weight, old.weight[order_K])
                for new, old in zip(after.inputs, before.inputs, strict=True)
            ]
            pairs.append((after.down.weight, before.down.weight[:, order_K]))
            if not all(torch.equal(got, want) for got, want in pairs):
                raise SystemExit(
                    f"refusing to time {name!r}: layer {layer} does not hold the neurons that stay"
                )


def least_bytes(model: PreTrainedModel, kept: Kept) -> int:
    """What must be read and written: rows of gate and up that fill holes, and the columns of down
    that stay.
    """
    num_moves = sum(hole_filling(torch.tensor(kept), model.config.intermediate_size).num_moves)
    row_bytes = model.config.hidden_size * model.dtype.itemsize
    return 2 * row_bytes * (2 * num_moves + sum(map(len, kept)))


def peak_bytes(way: Way, model: PreTrainedModel, kept: Kept) -> int:
    """The most that a way holds beside the model that it was given."""
    if model.device.type == "cuda":
        victim = copy.deepcopy(model)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way(victim, kept)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        victim = copy.deepcopy(
            model
        )  # in here, since only memory that was seen to be taken is seen to be given back
        with torch.profiler.record_function("way"):
            way(victim, kept)
    recorded = profile.profiler.kineto_results.events()
    start = next(event.start_ns() for event in recorded if event.name() == "way")
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]"
    )
    held = itertools.accumulate(num_bytes for when, num_bytes in changes if when >= start)
    return max(0, *held)


def _ratios(times: list[float], of_ours: list[float]) -> dict[str, float]:
    """This way's time over ours: median, p20 and p80 over the samples."""
    ratios = [other / mine for other, mine in zip(times, of_ours, strict=False)]
    quintiles = statistics.quantiles(ratios, n=5, method="inclusive")
    return {
        "ratio": statistics.median(ratios),
        "ratio_p20": quintiles[0],
        "ratio_p80": quintiles[-1],
    }


def _ffns(model: PreTrainedModel) -> list[GatedFfn]:
    return list(feed_forwards(model, find_family(model)).values())


def _resized(model: PreTrainedModel, ffns: list[GatedFfn], kept: Kept) -> PreTrainedModel:
    for ffn in ffns:
        for linear in ffn.inputs:
            linear.out_features = len(kept[0])
        ffn.down.in_features = len(kept[0])
    model.config.intermediate_size = len(kept[0])
    return model


def table_row(row: dict[str, Any]) -> list[str]:
    """Cells of one line: way, milliseconds, time over ours, GB/s, MiB held at most."""
    if row["status"] != MEASURED:
        return [row["way"], *[row["status"]] * 4]
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
    with told_in_one_line():
        clock.choose(options.clock)
        device = loading.resolve_device(options.device)
        config = (
            shape_config(options.shape)
            if options.shape
            else loading.load_config(options.model or loading.DEMO)
        )
    model = random_model(config, device, torch.float32 if device == "cpu" else torch.bfloat16)
    results: dict[str, Any] = {
        "environment": environment(device.partition(":")[0]),
        "model": options.shape or Path(options.model or loading.DEMO).name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "rows": measure(model, options.samples, not options.no_files),
    }
    print("| way | ms | time / ours (p20 to p80) | GB/s | peak MiB |\n|---|--:|--:|--:|--:|")
    for row in results["rows"]:
        print(f"| {' | '.join(table_row(row))} |")
    if options.json:
        write_text(options.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How much slower is a matrix product whose width does not suit the device? What --width-multiple
should be.

    python -m benchmarks.inference.widths --json benchmarks/results/alignment_NAME.json

Times the FFN's input projection (hidden -> width) and its output projection (width -> hidden) for
every eighth width around a centre. Widths take turns, in an order that changes from round to round,
with caches flushed; a width's time is the median over the
rounds. What counts is time per neuron: a width's excess is its time per neuron above that of the
widths that are multiples of 256. So a wide one has no excess for being wide, only for a size that
the device's kernels have to pad.

The rule: the smallest multiple from which on widths have a median excess of at most 2% in every
product. --width-multiple auto (ptl_fast/pruning/width_multiple.py) follows it with a few widths,
and on GPUs takes 128.
"""

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import clock
from benchmarks.harness.environment import environment
from benchmarks.harness.markdown import to_markdown
from benchmarks.harness.results import write_json
from benchmarks.harness.stopwatch import FLUSH_BYTES, Stopwatch
from ptl_fast.model.loading import resolve_device
from ptl_fast.pruning.width_multiple import excess, largest_multiple, products, rule

STEP = 8
MULTIPLES = (8, 16, 32, 64, 128, 256)
COLUMNS = ["product", "tokens", "multiple", "widths", "median excess", "worst"]
# by kind of device: dtype, hidden size, centre of the widths, how far they go to each side, tokens
# of a prefill and of a decode step, and rounds
DEFAULTS = {
    "cuda": ("bfloat16", 4096, 9216, 512, [8192, 16], 21),
    "cpu": ("float32", 576, 1024, 256, [512, 8], 9),
}


def time_widths(
    hidden: int,
    widths: list[int],
    num_tokens: int,
    dtype: torch.dtype,
    stopwatch: Stopwatch,
    num_rounds: int,
) -> dict[str, dict[int, float]]:
    """Milliseconds of both products by width: medians over rounds that take turns."""
    times: dict[str, dict[int, list[float]]] = {
        name: {width: [] for width in widths} for name in ("up", "down")
    }
    calls = products(hidden, widths, num_tokens, dtype, stopwatch.device)
    for call in calls.values():  # warms up: the first call of a size chooses its kernel
        call()
    # shuffled, so that a width does not always follow the same neighbour
    order, shuffle = list(calls), random.Random(0)
    for _ in range(num_rounds):
        shuffle.shuffle(order)
        for name, width in order:
            times[name][width].append(stopwatch.time_ms(calls[name, width]))
    return {
        name: {width: statistics.median(samples) for width, samples in of.items()}
        for name, of in times.items()
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each product and multiple: how many of the widths are multiples of it and of no larger
    one, and their median and worst excess.
    """
    lines = []
    for product_name, num_tokens in dict.fromkeys(
        (row["product"], row["num_tokens"]) for row in rows
    ):
        of_product = [
            row for row in rows if (row["product"], row["num_tokens"]) == (product_name, num_tokens)
        ]
        for multiple in MULTIPLES:
            values = [
                row["excess"]
                for row in of_product
                if largest_multiple(row["width"], MULTIPLES) == multiple
            ]
            if values:
                median, worst = statistics.median(values), max(values)
                line = {
                    "product": product_name,
                    "num_tokens": num_tokens,
                    "multiple": multiple,
                    "num_widths": len(values),
                }
                lines.append({**line, "median_excess": median, "worst_excess": worst})
    return lines


def chosen(lines: list[dict[str, Any]]) -> int:
    """The smallest multiple from which on every median excess is at most what the rule allows."""
    return rule([(line["multiple"], line["median_excess"]) for line in lines], MULTIPLES)


def table_row(line: dict[str, Any]) -> list[str]:
    """The cells of one line of the summary, by COLUMNS."""
    counts = [str(line[name]) for name in ("num_tokens", "multiple", "num_widths")]
    excesses = [f"{line[name]:.1%}" for name in ("median_excess", "worst_excess")]
    return [line["product"], *counts, *excesses]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Flags; sizes that are not given depend on the device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--hidden", type=int, help="hidden size")
    parser.add_argument("--centre", type=int, help="width in the middle, a multiple of 256")
    parser.add_argument("--reach", type=int, help="how far the widths go to each side")
    parser.add_argument("--num-tokens", type=int, nargs="+", help="rows of the products")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--json", type=Path, help="file for the results, written after each number of tokens"
    )
    clock.add_flag(parser)
    options = parser.parse_args(arguments)
    options.device = resolve_device(options.device)
    options.device_type = options.device.partition(":")[0]
    names = ("dtype", "hidden", "centre", "reach", "num_tokens", "rounds")
    for name, default in zip(names, DEFAULTS[options.device_type], strict=True):
        if getattr(options, name) in (None, "auto"):
            setattr(options, name, default)
    if options.centre % MULTIPLES[-1] or not STEP <= options.reach < options.centre:
        parser.error(
            f"--centre must be a multiple of {MULTIPLES[-1]}, and --reach from {STEP} to below it"
        )
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(0)
    clock.choose(options.clock)
    stopwatch = Stopwatch(options.device, FLUSH_BYTES[options.device_type])
    # multiples of STEP: the centre is one
    first = options.centre - options.reach // STEP * STEP
    widths = list(range(first, options.centre + options.reach + 1, STEP))
    results: dict[str, Any] = {
        "environment": environment(options.device_type),
        "dtype": options.dtype,
        "hidden": options.hidden,
    }
    results["rows"] = []
    for num_tokens in options.num_tokens:
        times = time_widths(
            options.hidden,
            widths,
            num_tokens,
            getattr(torch, options.dtype),
            stopwatch,
            options.rounds,
        )
        for name, times_ms in times.items():
            above = excess(times_ms, MULTIPLES[-1])
            place = {"product": name, "num_tokens": num_tokens}
            results["rows"] += [
                {**place, "width": each, "time_ms": times_ms[each], "excess": above[each]}
                for each in widths
            ]
        results["summary"] = summary(results["rows"])
        results["rule"] = chosen(results["summary"])
        if options.json:
            write_json(options.json, results)
    print(to_markdown([COLUMNS, *map(table_row, results["summary"])]))
    print(f"rule: widths that are multiples of {results['rule']}")


if __name__ == "__main__":
    main()

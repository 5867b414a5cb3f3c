"""Write the tables of docs/benchmarks.md from the raw results, so that no number is typed by hand.

    python -m benchmarks.documents.speed_table [--check]

Reads speedup_*.json, throughput_*.json, stages_*.json and alignment_*.json in benchmarks/results.
What is expected and has no results is named below its table.
"""

import functools
from pathlib import Path
from typing import Any

from benchmarks.documents import targets
from benchmarks.documents.document import (
    DEVICE_TYPES,
    ROOT,
    Results,
    commit_cell,
    link,
    load,
    of_device_type,
    write_tables,
)
from benchmarks.harness.markdown import MISSING, Table, TableMakers
from benchmarks.harness.results import MEASURED
from benchmarks.inference.speedup import ratio_cells
from benchmarks.inference.widths import MULTIPLES
from benchmarks.recovery import throughput as throughput_module

DOCUMENT = ROOT / "docs" / "benchmarks.md"
# what the document promises, by kind of device: without results it is named below the table
EXPECTED = {"cuda": ("llama3-8b", "gemma2-9b", "qwen2.5-7b"), "cpu": ("ptl-demo", "smollm2")}
PREFIXES = ("speedup", "scoring", "kernels", "compaction", "stages")  # of what the targets need
WHERE = ["device", "model", "size", "dtype", "engine", "batch", "prompt", "new tokens"]
NUM_NAMES = {
    **dict.fromkeys(("prefill", "decode", "paper"), len(WHERE)),
    "resources": 1 + len(WHERE),
    "throughput": 6,
    "alignment": 4,
}
SPEED = [
    "dense ms",
    "compressed ms",
    "speedup (p20 to p80)",
    "FLOPs",
    "bytes",
    "device alone",
    "predicted",
    "of predicted",
]
RESOURCES = {
    "first_token_ms": "first token ms",
    "tokens_per_second": "tokens/s",
    "peak_gib": "peak GiB",
    "joules_per_token": "J/token",
}


def make_tables(folder: Path) -> TableMakers:
    """Every table of the document, from the results in a folder."""
    speedup, alignment, throughput, stages = (
        load(folder, prefix) for prefix in ("speedup", "alignment", "throughput", "stages")
    )
    makers: TableMakers = {
        "devices": lambda: devices_table([*speedup, *throughput, *stages, *alignment]),
        "resources": lambda: resources_table(speedup),
        "targets": lambda: targets.table({name: load(folder, name) for name in PREFIXES}, "cpu"),
        "throughput": lambda: throughput_table(throughput),
        "stages": lambda: stages_table(stages),
        "alignment": lambda: alignment_table(alignment),
    }
    for kind in ("prefill", "decode", "paper"):
        makers[kind] = functools.partial(speedup_table, speedup, kind)
    return makers


def speedup_table(speedup: Results, kind: str) -> Table:
    """Workloads of one kind: a row for each device, model, engine and batch."""
    table = [[*WHERE, *SPEED]]
    for results, row in _rows(speedup, kind):
        table.append(
            [
                *_where_cells(results, row),
                *(_speed_cells(row) if row["status"] == MEASURED else [MISSING] * len(SPEED)),
            ]
        )
    return table + [
        [*names, *[""] * (len(WHERE) - 2), *[MISSING] * len(SPEED)]
        for names in _without_results(speedup)
    ]


def resources_table(speedup: Results) -> Table:
    """Time to the first token, throughput, memory and energy, dense -> compressed: a row for each
    measured workload.
    """
    table = [["work", *WHERE, *RESOURCES.values()]]
    for results, row in _rows(speedup):
        if row["status"] == MEASURED:
            table.append(
                [
                    row["work"],
                    *_where_cells(results, row),
                    *(_dense_and_compressed(row, name) for name in RESOURCES),
                ]
            )
    return table + [
        ["", *names, *[""] * (len(WHERE) - 2), *[MISSING] * len(RESOURCES)]
        for names in _without_results(speedup)
    ]


def throughput_table(throughput: Results) -> Table:
    """Training's throughput: a row for each device, model and way."""
    table = [["device", "model", "dtype", "sequence", "batch", *throughput_module.COLUMNS]]
    for device_type, label in DEVICE_TYPES.items():
        of_type = of_device_type(throughput, device_type)
        if not of_type:
            table.append([label, *[""] * 5, *[MISSING] * 3])
        for results in of_type:
            sizes = [str(results[name]) for name in ("model", "dtype", "sequence_length", "batch")]
            table += [
                [results["environment"]["device"], *sizes, *throughput_module.table_row(row)]
                for row in results["rows"]
            ]
    return table


def stages_table(stages: Results) -> Table:
    """Seconds of whole runs: a row for each."""
    # the stages' names come from the results, the same in every file
    names = list(stages[0]["seconds"]) if stages else []
    table = [
        [
            "device",
            "run",
            "rounds",
            "recovery tokens",
            *(f"{name} s" for name in names),
            "loop overhead",
            "not recovery",
        ]
    ]
    for results in stages:
        seconds = [f"{results['seconds'][name]:.1f}" for name in names]
        shares = [f"{results[name]:.1%}" for name in ("loop_overhead", "not_recovery")]
        counts = [results["name"], str(results["num_rounds"]), str(results["recovery_tokens"])]
        table.append([results["environment"]["device"], *counts, *seconds, *shares])
    return table


def alignment_table(alignment: Results) -> Table:
    """Excess of the widths whose largest divisor among the multiples is the column's: a row for
    each device and product.
    """
    header = [
        "device",
        "dtype",
        "product",
        "tokens",
        *(f"{multiple}: median (worst)" for multiple in MULTIPLES),
        "rule",
    ]
    table = [header]
    for device_type, label in DEVICE_TYPES.items():
        of_type = of_device_type(alignment, device_type)
        if not of_type:
            table.append([label, "", "", "", *[MISSING] * (len(MULTIPLES) + 1)])
        for results in of_type:
            for product, num_tokens in dict.fromkeys(
                (line["product"], line["num_tokens"]) for line in results["summary"]
            ):
                # a multiple may have no width in the range that was measured
                cells = {
                    line["multiple"]: f"{line['median_excess']:.1%} ({line['worst_excess']:.1%})"
                    for line in results["summary"]
                    if (line["product"], line["num_tokens"]) == (product, num_tokens)
                }
                place = [
                    results["environment"]["device"],
                    results["dtype"],
                    product,
                    str(num_tokens),
                ]
                table.append(
                    [
                        *place,
                        *(cells.get(multiple, MISSING) for multiple in MULTIPLES),
                        str(results["rule"]),
                    ]
                )
    return table


def devices_table(all_results: Results) -> Table:
    """Which device, versions and commit each file of results belongs to."""
    table = [
        [
            "results",
            "device",
            "driver",
            "threads",
            "clock",
            "torch",
            "transformers",
            "triton",
            "commit",
        ]
    ]
    for results in all_results:
        known = results["environment"]
        versions = (
            str(known.get(name) or "")
            for name in ("driver", "threads", "clock", "torch", "transformers", "triton")
        )
        table.append([link(results), known["device"], *versions, commit_cell(known)])
    present = {results["environment"]["device_type"] for results in all_results}
    return table + [
        [MISSING, label, *[""] * 7]
        for device_type, label in DEVICE_TYPES.items()
        if device_type not in present
    ]


def _rows(speedup: Results, kind: str | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(results, row), GPUs first."""
    return [
        (results, row)
        for device_type in DEVICE_TYPES
        for results in of_device_type(speedup, device_type)
        for row in results["rows"]
        if kind in (None, row["work"])
    ]


def _without_results(speedup: Results) -> Table:
    """[device, model] of what was expected and is not there."""
    present = {(results["environment"]["device_type"], results["model"]) for results in speedup}
    return [
        [DEVICE_TYPES[device_type], model]
        for device_type, names in EXPECTED.items()
        for model in names
        if (device_type, model) not in present
    ]


def _where_cells(results: dict[str, Any], row: dict[str, Any]) -> list[str]:
    # FFN width x layers
    dense, compressed = (results["sizes"][name] for name in ("dense", "compressed"))
    size = (
        f"{dense['width']} x {dense['num_layers']} -> {compressed['width']} x"
        f" {compressed['num_layers']}"
    )
    numbers = (str(row[name]) for name in ("batch_size", "prompt_length", "new_tokens"))
    # MALLOC_* variables were set: glibc then keeps freed memory instead of returning it
    kept = ", memory kept" if results["environment"].get("malloc") else ""
    return [
        results["environment"]["device"],
        results["model"] + kept,
        size,
        results["dtype"],
        row["engine"],
        *numbers,
    ]


def _speed_cells(row: dict[str, Any]) -> list[str]:
    times = [f"{row[name]['time_ms']:.1f}" for name in ("dense", "compressed")]
    # a row of vLLM may have no prediction
    measured, predicted, share = (cell or MISSING for cell in ratio_cells(row))
    counts = (_count_ratio(row, name) for name in ("flops", "num_bytes"))
    alone = f"{row['device_speedup']:.2f}" if "device_speedup" in row else MISSING
    return [*times, measured, *counts, alone, predicted, share]


def _count_ratio(row: dict[str, Any], name: str) -> str:
    """Dense over compressed."""
    if name not in row["dense"]:
        return MISSING
    return f"{row['dense'][name] / row['compressed'][name]:.2f}"


def _dense_and_compressed(row: dict[str, Any], name: str) -> str:
    values = [row[model].get(name) for model in ("dense", "compressed")]
    return MISSING if None in values else " -> ".join(f"{value:.3g}" for value in values)


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables, NUM_NAMES)


if __name__ == "__main__":
    main()

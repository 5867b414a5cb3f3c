"""Write the tables of docs/kernels.md from the raw results, so that no number is typed by hand.

    python -m benchmarks.documents.kernels_table [--check]

Reads kernels_*.json, scoring_*.json, compaction_*.json and during_recovery_*.json in
benchmarks/results. What has no results is named below its table.
"""

import functools
from pathlib import Path
from typing import Any

from benchmarks.compaction import bench_compaction
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
from benchmarks.harness.environment import dtype_name
from benchmarks.harness.markdown import MISSING, Table, TableMakers
from benchmarks.harness.results import MEASURED
from benchmarks.kernels.cases import OPS, cases
from benchmarks.scoring import bench_score_during_recovery

DOCUMENT = ROOT / "docs" / "kernels.md"
NUM_NAMES = {**dict.fromkeys(OPS, 3), "scoring": 5, "compaction": 3}
SCORING = {
    "tokens_per_second": "tokens/s",
    "vs_plain_forward": "against the plain forward pass",
    "vs_packed_forward": "against that with masked sequences of several documents",
    "vs_plain_decoder": "against the plain decoder",
    "vs_eager_hooks": "against eager hooks",
    "vs_reference_rule": "against the authors' detection rule",
}


def make_tables(folder: Path) -> TableMakers:
    """Every table of this document, from the results in a folder."""
    prefixes = ("kernels", "scoring", "compaction", "during_recovery")
    kernels, scoring, compaction, during_recovery = (load(folder, prefix) for prefix in prefixes)
    makers: TableMakers = {name: functools.partial(op_table, name, kernels) for name in OPS}
    makers["devices"] = lambda: devices_table(kernels, [*scoring, *compaction, *during_recovery])
    makers["scoring"] = lambda: scoring_table(scoring)
    makers["compaction"] = lambda: compaction_table(compaction)
    makers["during_recovery"] = lambda: during_recovery_table(during_recovery)
    return makers


def op_table(op: str, kernels: Results) -> Table:
    """One op: a row for each device, shape and dtype, and a column with the ratio to each peer."""
    # peers of either kind of device: a column for each, also where a device cannot run it
    peers = list(
        dict.fromkeys(
            peer
            for device_type in DEVICE_TYPES
            for case in cases(device_type, op=op)
            for peer in case.peers
        )
    )
    table = [["device", "shape", "dtype", "ours ms", "GB/s (of copy)", "error", *peers]]
    for device_type, label in DEVICE_TYPES.items():
        of_type = of_device_type(kernels, device_type)
        for case in cases(device_type, op=op):
            key = case.op, str(case.setting.shape), dtype_name(case.setting.dtype)
            rows_of_files = [(each["environment"]["device"], _rows(each, key)) for each in of_type]
            # a file may hold some ops only
            measured = [(device, rows) for device, rows in rows_of_files if rows]
            unmeasured: list[tuple[str, dict[str, Any]]] = [
                (rows_of_files[0][0] if rows_of_files else label, {})
            ]
            for device, rows in measured or unmeasured:
                table.append([device, *key[1:], *_cells([rows.get(peer) for peer in peers])])
    return table


def _rows(results: dict[str, Any], key: tuple[str, str, str]) -> dict[str, dict[str, Any]]:
    """The rows of one case in a file, by peer."""
    return {
        row["peer"]: row
        for row in results["rows"]
        if (row["op"], row["shape"], row["dtype"]) == key
    }


def _cells(rows: list[dict[str, Any] | None]) -> list[str]:
    measured = [row for row in rows if row and row["status"] == MEASURED]
    if measured:
        row = measured[0]  # our numbers are the same in the rows of all peers
        traffic = f"{row['gbs']:.1f} ({row['percent_of_copy']:.0f}%)" if row["gbs"] else ""
        ours = [f"{row['time_ms']:.3f}", traffic, f"{row['max_rel_error']:.1e}"]
    else:
        ours = [MISSING] * 3
    return [*ours, *(_ratio(row) for row in rows)]


def _ratio(row: dict[str, Any] | None) -> str:
    if row is None or row["status"] != MEASURED:
        return MISSING
    return f"{row['ratio_to_peer']:.2f} ({row['ratio_p20']:.2f} to {row['ratio_p80']:.2f})"


def scoring_table(scoring: Results) -> Table:
    """The scoring pass of whole models: a row for each device and model."""
    table = [["device", "model", "dtype", "threads", "tokens a document", *SCORING.values()]]
    for device_type, label in DEVICE_TYPES.items():
        of_type = of_device_type(scoring, device_type)
        for results in of_type or [{"environment": {"device": label}, "model": "", "dtype": ""}]:
            known = results["environment"]
            # a row without results lacks the number of documents, and so do older results
            length = (
                f"{results['num_tokens'] / results['num_documents']:.0f}"
                if "num_documents" in results
                else ""
            )
            names = [
                known["device"],
                results["model"],
                results["dtype"],
                str(known.get("threads", "")),
                length,
            ]
            table.append([*names, *(_scoring_cell(results, name) for name in SCORING)])
    return table


def compaction_table(compaction: Results) -> Table:
    """Removal from whole models: a row for each device, model and way."""
    table = [["device", "model", "dtype", *bench_compaction.COLUMNS]]
    for device_type, label in DEVICE_TYPES.items():
        of_type = of_device_type(compaction, device_type)
        if not of_type:
            table.append([label, "", "", "", *[MISSING] * (len(bench_compaction.COLUMNS) - 1)])
        for results in of_type:
            place = [results["environment"]["device"], results["model"], results["dtype"]]
            table += [[*place, *bench_compaction.table_row(row)] for row in results["rows"]]
    return table


def during_recovery_table(during_recovery: Results) -> Table:
    """Neurons chosen from the end of recovery against those of a separate pass: a row for each
    round.
    """
    table = [["seed", *bench_score_during_recovery.COLUMNS]]
    for results in during_recovery:
        for row in results["rows"]:
            cells = bench_score_during_recovery.table_row(row)
            table.append([str(results["seed"]), *cells])
    return table


def devices_table(kernels: Results, others: Results) -> Table:
    """Which device, versions and commit each file of results belongs to, and what the device
    reaches.
    """
    table = [
        [
            "results",
            "device",
            "threads",
            "instruction set",
            "torch",
            "triton",
            "Liger",
            "commit",
            "copy GB/s",
        ]
    ]
    for results in [*kernels, *others]:
        known = results["environment"]
        names = ("threads", "cpu_instruction_set", "torch", "triton", "liger_kernel")
        versions = [str(known.get(name) or "") for name in names]
        copy_gbs = f"{results['ceilings']['copy_gbs']:.1f}" if "ceilings" in results else ""
        table.append([link(results), known["device"], *versions, commit_cell(known), copy_gbs])
    present = {results["environment"]["device_type"] for results in kernels}
    return table + [
        [MISSING, label, *[""] * 7]
        for device_type, label in DEVICE_TYPES.items()
        if device_type not in present
    ]


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables, NUM_NAMES)


def _scoring_cell(results: dict[str, Any], name: str) -> str:
    value, ends = results.get(name), results.get(f"{name}_range")
    if value is None:
        return MISSING
    spread = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return (f"{value:.0f}" if name == "tokens_per_second" else f"{value:.2f}") + spread


if __name__ == "__main__":
    main()

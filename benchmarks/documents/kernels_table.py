"""Write the tables of docs/kernels.md from the raw results, so that no number is typed by hand.

    python -m benchmarks.documents.kernels_table [--check]

Reads kernels_*.json, scoring_*.json, compaction_*.json and during_recovery_*.json in
benchmarks/results. A kind of device without results keeps its rows, as "not measured".
"""

import functools
from pathlib import Path
from typing import Any

from benchmarks.compaction import bench_compaction
from benchmarks.documents.from_results import DEVICE_TYPES, ROOT, Results, load, run
from benchmarks.harness.environment import dtype_name
from benchmarks.harness.markdown import MISSING, Makers
from benchmarks.harness.results import MEASURED
from benchmarks.kernels.cases import OPS, cases

DOCUMENT = ROOT / "docs" / "kernels.md"
SCORING = {
    "tokens_per_second": "tokens/s",
    "vs_plain_forward": "against the plain forward pass",
    "vs_packed_forward": "against that with masked sequences of several documents",
    "vs_plain_decoder": "against the plain decoder",
    "vs_eager_hooks": "against eager hooks",
    "vs_reference_rule": "against the authors' detection rule",
}


def tables(folder: Path) -> Makers:
    """Every table of this document, from the results in a folder."""
    prefixes = ("kernels", "scoring", "compaction", "during_recovery")
    kernels, scoring, compaction, during_recovery = (load(folder, prefix) for prefix in prefixes)
    makers: Makers = {name: functools.partial(op_table, name, kernels) for name in OPS}
    makers["devices"] = lambda: devices_table(kernels, [*scoring, *compaction, *during_recovery])
    makers["scoring"] = lambda: scoring_table(scoring)
    makers["compaction"] = lambda: compaction_table(compaction)
    makers["during_recovery"] = lambda: during_recovery_table(during_recovery)
    return makers


def op_table(op: str, kernels: Results) -> list[list[str]]:
    """One op: a row for each device, shape and dtype, and a column with the ratio to each peer."""
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
        of_type = [each for each in kernels if each["environment"]["device_type"] == device_type]
        for case in cases(device_type, op=op):
            key = case.op, str(case.setting.shape), dtype_name(case.setting.dtype)
            found = [
                (each["environment"]["device"], _rows(each, key)) for each in of_type
            ]  # files may hold some ops each
            for device, rows in [one for one in found if one[1]] or [
                (label if not found else found[0][0], {})
            ]:
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
        row = measured[0]
        traffic = f"{row['gbs']:.1f} ({row['percent_of_copy']:.0f}%)" if row["gbs"] else ""
        ours = [f"{row['time_ms']:.3f}", traffic, f"{row['max_rel_error']:.1e}"]
    else:
        ours = [MISSING] * 3
    return [*ours, *(_ratio(row) for row in rows)]


def _ratio(row: dict[str, Any] | None) -> str:
    if row is None or row["status"] != MEASURED:
        return MISSING
    return f"{row['ratio_to_peer']:.2f} ({row['ratio_p20']:.2f} to {row['ratio_p80']:.2f})"


def scoring_table(scoring: Results) -> list[list[str]]:
    """The scoring pass of whole models: a row for each device and model."""
    table = [["device", "model", "dtype", "threads", "tokens a document", *SCORING.values()]]
    for device_type, label in DEVICE_TYPES.items():
        of_type = [each for each in scoring if each["environment"]["device_type"] == device_type]
        for results in of_type or [{"environment": {"device": label}, "model": "", "dtype": ""}]:
            known = results["environment"]
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


def compaction_table(compaction: Results) -> list[list[str]]:
    """Removal from whole models: a row for each device, model and way."""
    table = [
        ["device", "model", "dtype", "way", "ms", "time / ours (p20 to p80)", "GB/s", "peak MiB"]
    ]
    for device_type, label in DEVICE_TYPES.items():
        of_type = [each for each in compaction if each["environment"]["device_type"] == device_type]
        if not of_type:
            table.append([label, "", "", "", *[MISSING] * 4])
        for results in of_type:
            place = [results["environment"]["device"], results["model"], results["dtype"]]
            table += [[*place, *bench_compaction.table_row(row)] for row in results["rows"]]
    return table


def during_recovery_table(during_recovery: Results) -> list[list[str]]:
    """Neurons chosen from the end of recovery against those of a separate pass: a row for each
    round.
    """
    table = [
        [
            "seed",
            "round",
            "width",
            "kept by both",
            "lowest layer",
            "tokens",
            "separate pass, s",
            "from recovery, s",
        ]
    ]
    for results in during_recovery:
        for row in results["rows"]:
            names = [str(results["seed"]), str(row["round"]), str(row["width"])]
            shares = [
                f"{row['overlap']:.1%}",
                f"{row['lowest_overlap']:.1%}",
                str(row["num_tokens_during_recovery"]),
            ]
            table.append(
                [
                    *names,
                    *shares,
                    f"{row['separate_pass_seconds']:.2f}",
                    f"{row['calibrate_seconds']:.2f}",
                ]
            )
    return table


def devices_table(kernels: Results, others: Results) -> list[list[str]]:
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
        commit = known.get("commit") or ""
        table.append(
            [
                f"[{results['file']}](../benchmarks/results/{results['file']})",
                known["device"],
                *(
                    str(known.get(name) or "")
                    for name in (
                        "threads",
                        "cpu_instruction_set",
                        "torch",
                        "triton",
                        "liger_kernel",
                    )
                ),
                f"{commit[:9]}{' and changes' if known.get('dirty') else ''}",
                f"{results['ceilings']['copy_gbs']:.1f}" if "ceilings" in results else "",
            ]
        )
    present = {results["environment"]["device_type"] for results in kernels}
    return table + [
        [MISSING, label, *[""] * 7]
        for device_type, label in DEVICE_TYPES.items()
        if device_type not in present
    ]


def main(arguments: list[str] | None = None) -> None:
    run(arguments, __doc__, DOCUMENT, tables)


def _scoring_cell(results: dict[str, Any], name: str) -> str:
    value, ends = results.get(name), results.get(f"{name}_range")
    if value is None:
        return MISSING
    spread = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return (f"{value:.0f}" if name == "tokens_per_second" else f"{value:.2f}") + spread


if __name__ == "__main__":
    main()

"""Write the tables of docs/kernels.md from the raw results, so that no number is typed by hand.

    python -m benchmarks.kernels_table [--check]

Reads kernels_*.json, scoring_*.json, compaction_*.json and during_recovery_*.json in benchmarks/results. A kind of device without
results keeps its rows, as "not measured".
"""

import argparse
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import bench_compaction
from benchmarks.bench_kernels import dtype_name
from benchmarks.files import MEASURED, write_text
from benchmarks.kernel_cases import OPS, cases

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "kernels.md"
RESULTS = ROOT / "benchmarks" / "results"
DEVICE_TYPES = {"cuda": "GPU", "cpu": "CPU"}
MISSING = "not measured"
SCORING = {
    "tokens_per_second": "tokens/s",
    "vs_plain_forward": "against the plain forward pass",
    "vs_packed_forward": "against that with masked sequences of several documents",
    "vs_plain_decoder": "against the plain decoder",
    "vs_eager_hooks": "against eager hooks",
    "vs_reference_rule": "against the authors' detection rule",
}
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = list[dict[str, Any]]
Makers = dict[str, Callable[[], list[list[str]]]]


def fill(document: str, makers: Makers) -> str:
    """Return the document with every marked table written anew.

    Raises:
        ValueError: a marker names no table.
    """

    def write(match: re.Match[str]) -> str:
        if match[2] not in makers:
            raise ValueError(f"there is no table {match[2]!r}; choose from {', '.join(makers)}")
        return f"{match[1]}{to_markdown(makers[match[2]]())}\n{match[3]}"

    return MARKED.sub(write, document)


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
    peers = list(dict.fromkeys(peer for device_type in DEVICE_TYPES for case in cases(device_type, op=op) for peer in case.peers))
    table = [["device", "shape", "dtype", "ours ms", "GB/s (of copy)", "error", *peers]]
    for device_type, label in DEVICE_TYPES.items():
        of_type = [each for each in kernels if each["environment"]["device_type"] == device_type]
        for case in cases(device_type, op=op):
            key = case.op, str(case.setting.shape), dtype_name(case.setting.dtype)
            found = [(each["environment"]["device"], _rows(each, key)) for each in of_type]  # files may hold some ops each
            for device, rows in [one for one in found if one[1]] or [(label if not found else found[0][0], {})]:
                table.append([device, *key[1:], *_cells([rows.get(peer) for peer in peers])])
    return table


def _rows(results: dict[str, Any], key: tuple[str, str, str]) -> dict[str, dict[str, Any]]:
    """The rows of one case in a file, by peer."""
    return {row["peer"]: row for row in results["rows"] if (row["op"], row["shape"], row["dtype"]) == key}


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
            length = f"{results['num_tokens'] / results['num_documents']:.0f}" if "num_documents" in results else ""
            names = [known["device"], results["model"], results["dtype"], str(known.get("threads", "")), length]
            table.append([*names, *(_scoring_cell(results, name) for name in SCORING)])
    return table


def compaction_table(compaction: Results) -> list[list[str]]:
    """Removal from whole models: a row for each device, model and way."""
    table = [["device", "model", "dtype", "way", "ms", "time / ours (p20 to p80)", "GB/s", "peak MiB"]]
    for device_type, label in DEVICE_TYPES.items():
        of_type = [each for each in compaction if each["environment"]["device_type"] == device_type]
        if not of_type:
            table.append([label, "", "", "", *[MISSING] * 4])
        for results in of_type:
            place = [results["environment"]["device"], results["model"], results["dtype"]]
            table += [[*place, *bench_compaction.table_row(row)] for row in results["rows"]]
    return table


def during_recovery_table(during_recovery: Results) -> list[list[str]]:
    """Neurons chosen from the end of recovery against those of a separate pass: a row for each round."""
    table = [["seed", "round", "width", "kept by both", "lowest layer", "tokens", "separate pass, s", "from recovery, s"]]
    for results in during_recovery:
        for row in results["rows"]:
            names = [str(results["seed"]), str(row["round"]), str(row["width"])]
            shares = [f"{row['overlap']:.1%}", f"{row['lowest_overlap']:.1%}", str(row["num_tokens_during_recovery"])]
            table.append([*names, *shares, f"{row['separate_pass_seconds']:.2f}", f"{row['calibrate_seconds']:.2f}"])
    return table


def devices_table(kernels: Results, others: Results) -> list[list[str]]:
    """Which device, versions and commit each file of results belongs to, and what the device reaches."""
    table = [["results", "device", "threads", "instruction set", "torch", "triton", "Liger", "commit", "copy GB/s"]]
    for results in [*kernels, *others]:
        known = results["environment"]
        commit = known.get("commit") or ""
        table.append(
            [
                f"[{results['file']}](../benchmarks/results/{results['file']})",
                known["device"],
                *(str(known.get(name) or "") for name in ("threads", "cpu_instruction_set", "torch", "triton", "liger_kernel")),
                f"{commit[:9]}{' and changes' if known.get('dirty') else ''}",
                f"{results['ceilings']['copy_gbs']:.1f}" if "ceilings" in results else "",
            ]
        )
    present = {results["environment"]["device_type"] for results in kernels}
    return table + [[MISSING, label, *[""] * 7] for device_type, label in DEVICE_TYPES.items() if device_type not in present]


def to_markdown(table: list[list[str]]) -> str:
    """A header and rows as a Markdown table; numbers to the right."""
    header, *rows = table
    rules = ["--:" if all(_is_number(row[column]) for row in rows) else "---" for column in range(len(header))]
    return "\n".join([_line(header), f"|{'|'.join(rules)}|", *map(_line, rows)])


def load(folder: Path, prefix: str) -> Results:
    """Every file of results with this prefix, by name, each with its name under "file"."""
    return [{**json.loads(path.read_text()), "file": path.name} for path in sorted(folder.glob(f"{prefix}_*.json"))]


def main(arguments: list[str] | None = None) -> None:
    run(arguments, __doc__, DOCUMENT, tables)


def run(arguments: list[str] | None, description: str | None, document: Path, tables: Callable[[Path], Makers]) -> None:
    """The command line of a document's tables: write them, or check that they are what the results give."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the document differs")
    parser.add_argument("--document", type=Path, default=document)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    before = options.document.read_text()
    after = fill(before, tables(options.results))
    if options.check and before != after:
        raise SystemExit(f"{options.document} is not what {options.results} gives; run the same command without --check")
    if before != after:
        write_text(options.document, after)


def _scoring_cell(results: dict[str, Any], name: str) -> str:
    value, ends = results.get(name), results.get(f"{name}_range")
    if value is None:
        return MISSING
    spread = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return (f"{value:.0f}" if name == "tokens_per_second" else f"{value:.2f}") + spread


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell == MISSING


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

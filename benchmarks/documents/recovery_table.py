"""Write the tables of docs/recovery.md from the rows of benchmarks.recovery.study.

    python -m benchmarks.documents.recovery_table [--check]

Reads recovery_demo.json, recovery_opd_test.json, recovery_distill_test.json and
recovery_distill_validation.json in benchmarks/results. What is expected and has no row keeps its
line, as "not measured".
"""

import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents.document import ROOT, write_tables
from benchmarks.harness.markdown import MISSING, Table, TableMakers
from benchmarks.recovery.distillation import settings_by_row

DOCUMENT = ROOT / "docs" / "recovery.md"
ARMS = {
    "untouched": "the pruned model, untouched",
    "grpo": "`grpo`",
    "cpt": "`cpt`, short",
    "cpt, then grpo": "`cpt,grpo`: short, then reinforced",
    "cpt, as long": "`cpt` alone, as long as that",
}
"""By the name in the rows, what an arm of the reinforcement section is called."""


ON_POLICY = {
    "untouched": "the pruned model, untouched",
    "opd": "`opd`, answers grow from 12 to 48 tokens",
    "opd, all answers long": "the same, all up to 48",
    "opd, jsd": "the first with `--opd-divergence jsd`",
    "cpt, as long": "`cpt`, as long as the first",
    "distill, as long": "`distill`, as long",
    "cpt, then opd": "`cpt,opd`, half of the time each",
}
"""The same of the section on on-policy distillation."""


def make_tables(folder: Path) -> TableMakers:
    """Every table of the document, from the results in a folder."""
    makers: TableMakers = {
        f"distillation_{split}": functools.partial(
            distillation_table, _read(folder / f"recovery_distill_{split}.json"), split
        )
        for split in ("test", "validation")
    }
    for name, file, arms in (
        ("reinforcement", "recovery_demo.json", ARMS),
        ("on_policy", "recovery_opd_test.json", ON_POLICY),
    ):
        makers[name] = functools.partial(arms_table, _read(folder / file), arms)
    return makers


def arms_table(results: dict[str, Any], named: dict[str, str]) -> Table:
    """Accuracy of each arm, over the seeds.

    Args:
        named: {arm in the rows: what it is called}.
    """
    table = [
        [
            "recovery",
            "accuracy %, mean (lowest to highest)",
            "seeds",
            "CPU seconds",
            "tokens of text",
            "rollouts",
        ]
    ]
    for arm, name in named.items():
        rows = [arms[arm] for arms in results.get("rows", {}).values() if arm in arms]
        if not rows:
            table.append([name, *[MISSING] * 5])
            continue
        seconds, tokens = (
            f"{statistics.mean(row[key] for row in rows):,.0f}" for key in ("cpu_seconds", "tokens")
        )
        # rollouts follow from the settings, so they are the same for all seeds
        sampled = rows[0].get("grpo") or rows[0].get("opd") or {"rollouts": 0}
        rollouts = f"{sampled['rollouts']:,}"
        table.append([name, _accuracy(rows), str(len(rows)), seconds, tokens, rollouts])
    return table


def distillation_table(rows: dict[str, Any], split: str = "test") -> Table:
    """Accuracy and CPU time of each way of recovery, over the seeds."""
    table = [
        ["recovery", "seeds", "accuracy %, mean (lowest to highest)", "CPU seconds of recovery"]
    ]
    for name in settings_by_row(split):
        of_name = [row for key, row in rows.items() if key.startswith(f"{name}, seed ")]
        if not of_name:
            table.append([name, "0", MISSING, ""])
            continue
        seconds = f"{statistics.mean(row['cpu_seconds'] for row in of_name):.0f}"
        table.append([name, str(len(of_name)), _accuracy(of_name), seconds])
    return table


def _accuracy(rows: Sequence[dict[str, Any]]) -> str:
    values = [row["accuracy"] for row in rows]
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def main(arguments: list[str] | None = None) -> None:
    write_tables(arguments, __doc__, DOCUMENT, make_tables)


if __name__ == "__main__":
    main()

"""CSV files from rows alone."""

import csv
import io
from typing import Any

from benchmarks.methods.csv_tables import to_csv


def test_csv_holds_every_value(results: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(results, "table1"))))
    assert [(row["method"], float(row["mean"]), row["values"]) for row in rows] == [
        ("PTL", 91.0, "90 92"),
        ("other", 82.0, "80 84"),
    ]
    rows = list(csv.DictReader(io.StringIO(to_csv(results, "figure3"))))
    assert [(row["round"], row["stage"], float(row["mean"])) for row in rows[:2]] == [
        ("1", "pruned", 45.5),
        ("1", "recovered", 91.0),
    ]

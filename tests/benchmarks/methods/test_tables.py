"""Tables from rows alone."""

from typing import Any

from benchmarks.methods import tables as tables_module
from support.benchmarks import COMPARISON_TABLE


def test_table_is_exact(results: dict[str, Any]) -> None:
    assert tables_module.study_table(results, "methods") == COMPARISON_TABLE
